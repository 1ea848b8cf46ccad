#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

enum log_level log_threshold = LOG_WARN;
static int log_fd = STDERR_FILENO;
static const char *const names[] = {"error", "warn", "info", "debug"};

bool log_level_parse(const char *text, enum log_level *ret_level)
{
    if (!strcasecmp(text, "warning"))
        text = "warn";
    for (int i = 0; i <= LOG_DEBUG; i++) {
        if (!strcasecmp(text, names[i])) {
            *ret_level = (enum log_level)i;
            return true;
        }
    }
    return false;
}

const char *log_level_name(enum log_level level)
{
    return names[level];
}

void log_to(int fd)
{
    log_fd = fd;
}

static void log_line(enum log_level level, const char *format, va_list args)
{
    char line[1024];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm tm;
    gmtime_r(&now.tv_sec, &tm);
    size_t n = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03ldZ %s ", now.tv_nsec / 1000000, names[level]);
    int more = vsnprintf(line + n, sizeof line - n - 1, format, args);
    if (more > 0)
        n += (size_t)more;
    if (n > sizeof line - 2)
        n = sizeof line - 2;
    for (size_t i = 0; i < n; i++) /* what others said stays one line, and no command for a terminal */
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = '?';
    line[n++] = '\n';
    ssize_t ignored = write(log_fd, line, n);
    (void)ignored;
}

void log_write(enum log_level level, const char *format, ...)
{
    if (level > log_threshold)
        return;
    va_list args;
    va_start(args, format);
    log_line(level, format, args);
    va_end(args);
}

#define GUEST_SOURCES 64

void log_guest(const char *who, const char *format, ...)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        const char *who;
        time_t second;
        unsigned suppressed;
    } sources[GUEST_SOURCES];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < GUEST_SOURCES - 1 && sources[i].who && sources[i].who != who)
        i++;
    sources[i].who = who;
    bool quiet = sources[i].second == now.tv_sec + 1;
    sources[i].second = now.tv_sec + 1;
    unsigned suppressed = sources[i].suppressed;
    sources[i].suppressed = quiet ? suppressed + 1 : 0;
    pthread_mutex_unlock(&lock);
    if (quiet)
        return;
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (suppressed)
        log_warn("%s: %s (%u similar left out)", who, message, suppressed);
    else
        log_warn("%s: %s", who, message);
}
