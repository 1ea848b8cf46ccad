/* Sectors of a disk, encrypted each on its own: AES in XTS mode (IEEE 1619) or in CBC mode, with the number of the sector
 * in 512-byte units as initialization vector ("plain64" of dm-crypt). A cipher belongs to one thread at a time. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>
#include "base/err.h"

#define CRYPT_SECTOR_MAX 4096u

struct crypt_cipher;

/* `spec`: "aes-xts-plain64" (key of 32 or 64 bytes) or "aes-cbc-plain64" (16 or 32). `sector_size`: 512 to 4096, a power of
 * two. `iv_offset`: of the first sector. The key is the caller's and no longer needed. */
must_check int crypt_cipher_new(const char *spec, const uint8_t *key, size_t key_len, uint32_t sector_size, uint64_t iv_offset,
                                struct crypt_cipher **ret_cipher, struct err *err);
/* NULL is fine. */
void crypt_cipher_free(struct crypt_cipher *cipher);
uint32_t crypt_cipher_sector_size(const struct crypt_cipher *cipher);

/* In place; `offset` (on the disk) and `len` in bytes, multiples of the sector size. 0 or -EIO. */
int crypt_encrypt(struct crypt_cipher *cipher, uint64_t offset, uint8_t *data, size_t len);
/* The same for what an iovec holds; its elements may begin and end anywhere. */
int crypt_decrypt(struct crypt_cipher *cipher, uint64_t offset, const struct iovec *iov, unsigned count);
