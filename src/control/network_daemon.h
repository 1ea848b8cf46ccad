/* Helpers that put themselves into the background: dnsmasq, passt. They live on when polderd ends. */
#pragma once

#include <stdbool.h>
#include "base/err.h"

struct daemon_start {
    const char *program; /* found beside the caller, in PATH or /usr/sbin */
    const char *package; /* what to install when it is missing */
    char *const *argv;
    const char *mount_dir; /* the program sees this directory as DAEMON_MOUNT, whatever lies above it; NULL: none */
    int fd;                /* the child's descriptor 3; -1: none */
};

#define DAEMON_MOUNT "/mnt"

/* Runs it until it has gone into the background. An error has the last line that it wrote. */
must_check int daemon_start(const struct daemon_start *start, struct err *err);
/* A pidfd of the process in `pid_file` if that still has `argument` in its command line; -ESRCH when there is none. */
must_check int daemon_find(const char *pid_file, const char *argument);
/* Asks the process to end and waits for it, two seconds at most before it is killed. Takes the pidfd. */
void daemon_stop(int pidfd);
