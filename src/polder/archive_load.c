/* The library stays loaded until the end. */
#include "polder/archive_load.h"

#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#define LIBRARY "libarchive.so.13"

struct archive_functions la;

static const struct {
    const char *name;
    size_t at; /* of its pointer in struct archive_functions */
} functions[] = {
#define X(name) {#name, offsetof(struct archive_functions, name)},
    ARCHIVE_FUNCTIONS(X)
#undef X
};

int archive_load(struct err *err)
{
    struct archive_functions found = {0};
    if (la.archive_read_new)
        return 0;
    void *library = dlopen(LIBRARY, RTLD_LAZY);
    if (!library)
        return err_say(err, ENOTSUP, "copying needs " LIBRARY ": apt-get install libarchive13");
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *function = dlsym(library, functions[i].name);
        if (!function)
            return err_say(err, ENOTSUP, LIBRARY " has no %s: it is no libarchive 3.6 or newer", functions[i].name);
        memcpy((char *)&found + functions[i].at, &function, sizeof function);
    }
    la = found;
    return 0;
}
