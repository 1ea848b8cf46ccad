/* Host errors that carry their context. An inline value: nothing is allocated, so it works when memory is out.
 * Set once at the origin, context is put in front on the way up:
 *     return err_set(err, errno, "open '%s'", path);      -> -errno, "open '/nope': No such file or directory"
 *     return err_ctx(err, "virtio-%s", name);             -> same code, "virtio-rng: open '/nope': ..." */
#pragma once

#define ERR_MESSAGE_SIZE 240

struct err {
    int code; /* positive errno value; 0 when no error is held */
    int exit_code; /* what a command that could not be run ends with (126, 127, as shells say); 0: it is not about that */
    int line;
    const char *file;
    char message[ERR_MESSAGE_SIZE];
};

#define must_check __attribute__((warn_unused_result))

#ifdef __clang_analyzer__ /* sees one file at a time, and must know that these are negative */
#define ERR_NEGATIVE(call) ((void)(call), -1)
#else
#define ERR_NEGATIVE(call) (call)
#endif

/* Records an error; `code` is a positive errno value whose text is appended. Returns -code. `err` may be NULL. */
#define err_set(err, code, ...) ERR_NEGATIVE(err_set_at((err), (code), true, __FILE__, __LINE__, __VA_ARGS__))
/* The same without the errno text: for messages that say all. */
#define err_say(err, code, ...) ERR_NEGATIVE(err_set_at((err), (code), false, __FILE__, __LINE__, __VA_ARGS__))
/* Puts "context: " in front of the message. Returns -err->code (or -EIO when err is NULL or empty). */
#define err_ctx(err, ...) ERR_NEGATIVE(err_add_context((err), __VA_ARGS__))

#include <stdbool.h>

int err_set_at(struct err *err, int code, bool with_text, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 6, 7)));
/* Adds the exit code of a command that could not be run. `err` may be NULL. */
void err_set_exit_code(struct err *err, int exit_code);
int err_add_context(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
