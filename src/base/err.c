#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int err_set_at(struct err *err, int code, bool with_text, const char *file, int line, const char *format, ...)
{
    if (!err)
        return -code;
    va_list args;
    va_start(args, format);
    int length = vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    if (with_text && length >= 0 && (size_t)length < sizeof err->message)
        snprintf(err->message + length, sizeof err->message - (size_t)length, ": %s", strerror(code));
    err->code = code;
    err->exit_code = 0;
    err->file = file;
    err->line = line;
    return -code;
}

void err_set_exit_code(struct err *err, int exit_code)
{
    if (err)
        err->exit_code = exit_code;
}

int err_add_context(struct err *err, const char *format, ...)
{
    if (!err || !err->code)
        return -EIO;
    char context[ERR_MESSAGE_SIZE], rest[ERR_MESSAGE_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(context, sizeof context, format, args);
    va_end(args);
    memcpy(rest, err->message, sizeof rest);
    int length = snprintf(err->message, sizeof err->message, "%.120s: ", context);
    snprintf(err->message + length, sizeof err->message - (size_t)length, "%s", rest);
    return -err->code;
}
