/* Pages for secrets, and OpenSSL's way to them: it takes other allocation functions as long as it has allocated nothing. */
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "block/crypt/key.h"
#include "block/crypt/library.h"

struct secret {
    size_t mapped, len;
    struct secret *next;
    uint8_t data[] __attribute__((aligned(64)));
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct secret *secrets;
static _Thread_local bool for_openssl;

static struct secret *header_of(void *data)
{
    return (struct secret *)(void *)((uint8_t *)data - offsetof(struct secret, data));
}

/* NULL when `data` is no secret. */
static struct secret **find(const void *data)
{
    struct secret **link = &secrets;
    while (*link && (*link)->data != data)
        link = &(*link)->next;
    return *link ? link : NULL;
}

static void *map_secret(size_t len)
{
    size_t mapped = (sizeof(struct secret) + len + 4095) & ~(size_t)4095;
    struct secret *secret = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (secret == MAP_FAILED)
        return NULL;
    if (mlock(secret, mapped) < 0 || madvise(secret, mapped, MADV_DONTDUMP) < 0) {
        munmap(secret, mapped);
        return NULL;
    }
    secret->mapped = mapped;
    secret->len = len;
    pthread_mutex_lock(&lock);
    secret->next = secrets;
    secrets = secret;
    pthread_mutex_unlock(&lock);
    return secret->data;
}

/* False when it is no secret. */
static bool unmap_secret(void *data)
{
    pthread_mutex_lock(&lock);
    struct secret **link = find(data);
    if (link)
        *link = (*link)->next;
    pthread_mutex_unlock(&lock);
    if (!link)
        return false;
    struct secret *secret = header_of(data);
    explicit_bzero(secret->data, secret->len);
    munmap(secret, secret->mapped);
    return true;
}

static void *openssl_malloc(size_t len, const char *file, int line)
{
    (void)file;
    (void)line;
    return for_openssl ? map_secret(len) : malloc(len);
}

static void openssl_free(void *data, const char *file, int line)
{
    (void)file;
    (void)line;
    if (data && !unmap_secret(data))
        free(data);
}

static void *openssl_realloc(void *data, size_t len, const char *file, int line)
{
    pthread_mutex_lock(&lock);
    struct secret **link = data ? find(data) : NULL;
    size_t old = link ? (*link)->len : 0;
    pthread_mutex_unlock(&lock);
    if (!link && !(for_openssl && !data))
        return realloc(data, len);
    void *fresh = map_secret(len);
    if (fresh && data) {
        memcpy(fresh, data, old < len ? old : len);
        openssl_free(data, file, line);
    }
    return fresh;
}

void secret_prepare(void)
{
    if (!crypto_lib.CRYPTO_set_mem_functions(openssl_malloc, openssl_realloc, openssl_free))
        log_debug("OpenSSL is in use already; expanded keys stay on its heap");
}

void *secret_alloc(size_t len)
{
    return map_secret(len);
}

void secret_free(void *secret)
{
    if (secret)
        unmap_secret(secret);
}

void secret_begin(void)
{
    for_openssl = true;
}

void secret_end(void)
{
    for_openssl = false;
}
