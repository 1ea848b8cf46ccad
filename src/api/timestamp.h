/* Times as the API writes them: RFC 3339, UTC, milliseconds. */
#pragma once

#include <stdio.h>
#include <time.h>

#define TIMESTAMP_SIZE 40

static inline void timestamp_format(char out[static TIMESTAMP_SIZE], struct timespec when)
{
    struct tm tm;
    gmtime_r(&when.tv_sec, &tm);
    size_t n = strftime(out, TIMESTAMP_SIZE, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + n, TIMESTAMP_SIZE - n, ".%03ldZ", when.tv_nsec / 1000000);
}

static inline void timestamp_now(char out[static TIMESTAMP_SIZE])
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    timestamp_format(out, now);
}
