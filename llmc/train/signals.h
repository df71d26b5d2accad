// Ctrl-C and SIGTERM: the training loop checks a flag after every step, saves and ends with 130 or 143.
#pragma once

namespace llmc {

// Call it first in main: from then on a thread of its own takes the signals that ask to stop, and no other thread does.
// A handler on the stack of a thread that computes would destroy memory: oneDNN's AVX matrix products move the stack
// pointer into a buffer of theirs. Threads inherit this, so none may be started before. (Programs would inherit it too,
// but we start none.)
void take_signals_in_their_own_thread();

// From now on the first SIGINT or SIGTERM only sets the flag. After it, Ctrl-C (SIGINT) ends the process at once with
// 130, and further SIGTERMs have no effect. A write beyond a file size limit (ulimit -f) fails instead of ending the
// process. The flag is the only global state of the program, because a signal handler needs one.
void catch_stop_signals();

// The first signal (SIGINT or SIGTERM), or 0 if there was none. The program's exit code is then 128 + its number.
int stop_signal();

}  // namespace llmc
