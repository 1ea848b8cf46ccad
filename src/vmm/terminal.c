/* The saved mode is process-wide, as the terminal is. Signal handlers only call tcsetattr, which is signal-safe. */
#include "vmm/terminal.h"

#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

static struct termios saved;
static volatile sig_atomic_t saved_fd = -1;

void terminal_restore(void)
{
    if (saved_fd >= 0)
        tcsetattr((int)saved_fd, TCSANOW, &saved);
    saved_fd = -1;
}

/* The default action follows: the handler was one-shot, and the fault or raise happens again. */
static void on_fatal(int signal_number)
{
    if (saved_fd >= 0)
        tcsetattr((int)saved_fd, TCSANOW, &saved);
    raise(signal_number);
    _exit(128 + signal_number); /* the first process of a pid namespace survives its own signals */
}

/* On the alternate stack where a thread has one: the stack pointer of a vCPU thread may be the guest's. */
void terminal_catch_fatal_signals(void)
{
    static const int fatal[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS, SIGALRM};
    struct sigaction action = {.sa_handler = on_fatal, .sa_flags = (int)SA_RESETHAND | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    for (unsigned i = 0; i < sizeof fatal / sizeof fatal[0]; i++) {
        struct sigaction now;
        if (sigaction(fatal[i], NULL, &now) == 0 && now.sa_handler == SIG_DFL)
            sigaction(fatal[i], &action, NULL);
    }
}

void terminal_make_raw(int fd)
{
    struct termios mode;
    if (tcgetattr(fd, &mode) < 0)
        return;
    cfmakeraw(&mode);
    tcsetattr(fd, TCSANOW, &mode);
}

bool terminal_enter_raw(int fd)
{
    static bool registered;
    if (!isatty(fd) || tcgetattr(fd, &saved) < 0)
        return false;
    saved_fd = fd;
    if (!registered) {
        registered = true;
        atexit(terminal_restore);
    }
    struct termios mode = saved;
    cfmakeraw(&mode);
    mode.c_oflag |= OPOST; /* our own messages have plain newlines */
    tcsetattr(fd, TCSANOW, &mode);
    return true;
}
