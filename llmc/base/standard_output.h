// Standard output that must arrive: printf to a full disk fails in silence, so every main asks at its end.
#pragma once

namespace llmc {

// Call it first in main: a standard stream that the caller has closed (>&-) becomes one on which nothing works. Else
// the next file to be opened would take its number, and what is printed would land in a log or a checkpoint.
void hold_standard_streams();

// The end of every main whose results are what it prints. Writes what stdout still holds and returns `code`; if some of
// it did not arrive and code is 0, says so on stderr and returns 1.
int finish_output(int code);

// The end of a training, whose results are files: what it prints may be lost (a closed pipe, a full disk), with a
// warning on stderr.
void forgive_lost_output();

}  // namespace llmc
