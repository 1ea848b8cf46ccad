/* The program's log: one line a message on stderr or a file, with time and level. Thread-safe.
 * Libraries log at debug level only; programs log failures once. What a guest causes is rate-limited. */
#pragma once

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

extern enum log_level log_threshold;

/* Parses "error", "warn" ("warning"), "info" or "debug" in any case; false when unknown. */
bool log_level_parse(const char *text, enum log_level *ret_level);
const char *log_level_name(enum log_level level);
/* Sends the log to `fd` (owned by the caller, default 2). */
void log_to(int fd);

void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* One line a second at most for each source `who` (a string literal); counts what it leaves out. */
void log_guest(const char *who, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)                                                                                       \
    do {                                                                                                     \
        if (log_threshold >= LOG_DEBUG)                                                                      \
            log_write(LOG_DEBUG, __VA_ARGS__);                                                               \
    } while (0)
