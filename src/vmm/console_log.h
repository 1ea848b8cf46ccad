/* A log file of bounded size: when it is full its older half goes. One writer; the loop's thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct console_log {
    int fd; /* -1: none */
    uint64_t size, max;
};

/* Appends to what the file at `path` (or "fd:N") holds. */
must_check int console_log_open(struct console_log *log, const char *path, uint64_t max, struct err *err);
void console_log_close(struct console_log *log);
/* What cannot be written (a full disk) is lost, and said once a second at most. */
void console_log_write(struct console_log *log, const void *data, size_t len);
