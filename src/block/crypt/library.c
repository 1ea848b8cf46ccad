#include "block/crypt/library.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>

#include "block/crypt/key.h"

#define LIBCRYPTO "libcrypto.so.3"
#define LIBCRYPTSETUP "libcryptsetup.so.12"

struct crypt_library crypt_lib;

#define ENTRY(function) {#function, offsetof(struct crypt_library, function)},
struct entry {
    const char *name;
    size_t offset;
};
static const struct entry crypto_entries[] = {CRYPT_LIBCRYPTO_FUNCTIONS(ENTRY){NULL, 0}};
static const struct entry cryptsetup_entries[] = {CRYPT_LIBCRYPTSETUP_FUNCTIONS(ENTRY){NULL, 0}};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct err failure;

/* The library stays loaded until the process ends. */
static int load(const char *soname, const struct entry *entries)
{
    void *library = dlopen(soname, RTLD_NOW);
    for (; library && entries->name; entries++) {
        void *function = dlsym(library, entries->name);
        if (!function)
            return err_say(&failure, ENOENT, "encryption: %s has no %s; is it too old?", soname, entries->name);
        *(void **)(void *)((char *)&crypt_lib + entries->offset) = function;
    }
    return library ? 0 : err_say(&failure, ENOENT, "encryption needs %s: %s", soname, dlerror());
}

static void load_all(void)
{
    int r = load(LIBCRYPTO, crypto_entries);
    if (r == 0) {
        secret_prepare();
        r = load(LIBCRYPTSETUP, cryptsetup_entries);
    }
    (void)r; /* `failure` says it */
}

int crypt_library_load(struct err *err)
{
    pthread_once(&once, load_all);
    if (failure.code && err)
        *err = failure;
    return -failure.code;
}
