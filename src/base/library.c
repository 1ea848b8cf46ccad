#include "base/library.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static int load(struct library *library, struct err *err)
{
    size_t count = 0;
    while (library->functions[count])
        count++;
    void *handle = dlopen(library->file, RTLD_NOW);
    if (!handle)
        return err_say(err, ENOENT, "%s needs %s (apt-get install %s): %s", library->needed_for, library->file, library->package,
                       dlerror());
    void **found = calloc(count + 1, sizeof *found);
    if (!found)
        return err_set(err, ENOMEM, "%s", library->file);
    int r = 0;
    for (size_t i = 0; i < count && r == 0; i++) {
        found[i] = dlsym(handle, library->functions[i]);
        if (!found[i])
            r = err_say(err, ENOENT, "%s: %s has no %s; is it too old?", library->needed_for, library->file, library->functions[i]);
    }
    if (r == 0)
        memcpy(library->table, found, count * sizeof *found);
    free(found);
    return r;
}

int library_load(struct library *library, struct err *err)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    int r = 0;
    pthread_mutex_lock(&lock);
    if (!library->loaded) {
        r = load(library, err);
        library->loaded = r == 0;
    }
    pthread_mutex_unlock(&lock);
    return r;
}
