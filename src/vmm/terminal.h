/* Raw mode of the program's terminal, undone at every end: exit(), fatal signals, terminal_restore(). */
#pragma once

#include <stdbool.h>

/* False when `fd` is no terminal (nothing changes then). Once a program at a time. */
bool terminal_enter_raw(int fd);
void terminal_restore(void);
/* Once, before anything else handles such signals; what does so later passes on what it does not know. */
void terminal_catch_fatal_signals(void);
/* Raw mode without a way back, for a pty's own side. */
void terminal_make_raw(int fd);
