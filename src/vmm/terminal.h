/* Raw mode of the program's terminal, undone at every end: exit(), fatal signals, terminal_restore(). */
#pragma once

#include <stdbool.h>

/* False when `fd` is no terminal (nothing changes then). Once a program at a time. */
bool terminal_enter_raw(int fd);
void terminal_restore(void);
/* Raw mode without a way back, for a pty's own side. */
void terminal_make_raw(int fd);
