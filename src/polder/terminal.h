/* The user's terminal: raw while a session has it, restored however the program ends. One thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Raw mode on standard input; restored by terminal_restore() and at exit. False: it is no terminal. */
bool terminal_set_raw(void);
void terminal_restore(void);
/* Rows and columns of the terminal; false: there is none. */
bool terminal_size(int *ret_rows, int *ret_columns);

/* Looks for the keys that leave a session in what is typed: each of `keys` in turn. */
struct terminal_escape {
    const char *keys; /* "\x10\x11"; "": none */
    size_t seen;      /* of them, held back */
};
/* Copies `in` to `out` (room for len + strlen(keys)) without the keys, up to them. Returns the length; *ret_left: all
 * keys came. */
size_t terminal_filter(struct terminal_escape *escape, const char *in, size_t len, char *out, bool *ret_left);
