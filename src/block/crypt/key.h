/* Keys and memory for them: locked (never swapped), left out of core dumps, wiped when given back.
 * Threads: any. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define BLOCK_KEY_MAX 65536u

/* What opens an encrypted image: the bytes of a file, as they are; a line end counts. */
struct block_key {
    uint8_t *bytes; /* from secret_alloc */
    size_t len;
    char *name; /* of the file, for messages */
};

/* Reads a key file of 1 to BLOCK_KEY_MAX bytes; "-" is standard input. The key is the caller's: block_key_free. */
must_check int block_key_read(const char *path, struct block_key **ret_key, struct err *err);
/* NULL is fine. */
void block_key_free(struct block_key *key);

/* Zeroed; NULL when memory or the right to lock it (RLIMIT_MEMLOCK) is out. Takes whole pages: for few things. */
void *secret_alloc(size_t len);
/* NULL is fine. */
void secret_free(void *secret);
/* For crypt_library_load, before the first use of OpenSSL in the process; else its contexts stay on the heap, wiped but perhaps swapped. */
void secret_prepare(void);
/* What OpenSSL allocates in this thread between the two, such as a cipher's expanded key, comes from secret_alloc. */
void secret_begin(void);
void secret_end(void);
/* Loads what encryption needs (library.h), once; later it is there even where no file can be opened any more. -ENOENT when it is not
 * installed. */
must_check int crypt_library_load(struct err *err);
/* The same, and what libcryptsetup opens with its first header: /dev/urandom, a library. For who gives up his files. */
must_check int crypt_library_prepare(struct err *err);
