#include "block/crypt/library.h"

#include <pthread.h>

#include "base/library.h"
#include "block/crypt/key.h"

struct crypt_library crypt_lib;
struct crypto_library crypto_lib;

static struct library crypto = {
    .file = "libcrypto.so.3",
    .package = "libssl3",
    .needed_for = "encryption",
    .functions = (const char *const[]){CRYPT_LIBCRYPTO_FUNCTIONS(LIBRARY_ENTRY) NULL},
    .table = &crypto_lib,
};
static struct library cryptsetup = {
    .file = "libcryptsetup.so.12",
    .package = "libcryptsetup12",
    .needed_for = "encryption",
    .functions = (const char *const[]){CRYPT_LIBCRYPTSETUP_FUNCTIONS(LIBRARY_ENTRY) NULL},
    .table = &crypt_lib,
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct err failure;

static void load_all(void)
{
    int r = library_load(&crypto, &failure);
    if (r == 0) {
        secret_prepare();
        r = library_load(&cryptsetup, &failure);
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
