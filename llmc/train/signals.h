// Signals that ask a training to stop: its loop checks a flag, saves and ends with 128 + the signal.
#pragma once

namespace llmc {

// Call it first in main: from then on a thread of its own takes the signals that ask to stop, and no other thread does.
// A handler on the stack of a thread that computes would destroy memory: oneDNN's AVX matrix products move the stack
// pointer into a buffer of theirs. Threads inherit this, so none may be started before. (Programs would inherit it too,
// but we start none.)
void take_signals_in_their_own_thread();

// From now on the first of these signals only sets a flag: SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal was closed),
// and SIGUSR1, SIGUSR2 and SIGXCPU, by which batch systems announce a limit. After it, SIGINT ends the process at once
// with 130, and the others have no effect. What was ignored before stays ignored (nohup), except SIGINT and SIGTERM. A
// write to a closed pipe, or beyond a file size limit (ulimit -f), fails instead of ending the process. What the
// handler needs is the only global state of the program.
// speak: answer the first signal on stderr.
void catch_stop_signals(bool speak = true);

// The first signal, or 0 if there was none: SIGINT, SIGHUP, or SIGTERM, which also stands for the signals of batch
// systems. The program's exit code is then 128 + its number.
int stop_signal();

// Says on stderr that the run will stop, unless that has been said.
void say_stopping(int signal);

}  // namespace llmc
