#include "polder/terminal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static struct termios saved;
static bool is_raw;

void terminal_restore(void)
{
    if (is_raw)
        tcsetattr(STDIN_FILENO, TCSADRAIN, &saved);
    is_raw = false;
}

bool terminal_set_raw(void)
{
    static bool registered;
    if (tcgetattr(STDIN_FILENO, &saved) < 0)
        return false;
    if (!registered)
        registered = atexit(terminal_restore) == 0;
    struct termios raw = saved;
    cfmakeraw(&raw);
    is_raw = tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
    return is_raw;
}

bool terminal_size(int *ret_rows, int *ret_columns)
{
    struct winsize size;
    if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) < 0 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0)
        return false;
    *ret_rows = size.ws_row;
    *ret_columns = size.ws_col;
    return size.ws_row && size.ws_col;
}

size_t terminal_filter(struct terminal_escape *escape, const char *in, size_t len, char *out, bool *ret_left)
{
    size_t used = 0;
    *ret_left = false;
    for (size_t i = 0; i < len; i++) {
        if (*escape->keys && in[i] == escape->keys[escape->seen]) {
            escape->seen++;
            if (!escape->keys[escape->seen]) {
                *ret_left = true;
                escape->seen = 0;
                return used;
            }
            continue;
        }
        memcpy(out + used, escape->keys, escape->seen); /* they meant themselves */
        used += escape->seen;
        escape->seen = *escape->keys && in[i] == escape->keys[0] && escape->seen;
        if (!escape->seen)
            out[used++] = in[i];
    }
    return used;
}
