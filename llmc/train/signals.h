// Ctrl-C and SIGTERM: the loop looks at a flag after every step, saves and ends with 130 or 143.
#pragma once

namespace llmc {

// From now on SIGINT and SIGTERM are only noted. After the first of either, Ctrl-C (SIGINT) ends the process at once
// with 130; further SIGTERMs change nothing. A write past a file size limit (ulimit -f) fails instead of ending the
// process. The one piece of process-wide state: a signal handler has no other way to speak.
void catch_stop_signals();

// The first signal noted (SIGINT or SIGTERM), 0 if there was none. The program's exit code is then 128 + it.
int stop_signal();

}  // namespace llmc
