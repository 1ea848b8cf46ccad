/* One context a direction, made once: a sector costs its vector and one pass, nothing is allocated. */
#include "block/crypt/cipher.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "block/crypt/key.h"
#include "block/crypt/library.h"

struct crypt_cipher {
    EVP_CIPHER_CTX *encrypt, *decrypt;
    uint32_t sector_size;
    uint64_t iv_offset;
};

static const struct {
    const char *spec;
    size_t key_len;
    const char *name;
} ciphers[] = {
    {"aes-xts-plain64", 32, "AES-128-XTS"},
    {"aes-xts-plain64", 64, "AES-256-XTS"},
    {"aes-cbc-plain64", 16, "AES-128-CBC"},
    {"aes-cbc-plain64", 32, "AES-256-CBC"},
};

static const char *find(const char *spec, size_t key_len)
{
    for (unsigned i = 0; i < sizeof ciphers / sizeof *ciphers; i++)
        if (strcmp(ciphers[i].spec, spec) == 0 && ciphers[i].key_len == key_len)
            return ciphers[i].name;
    return NULL;
}

/* The context and the key's schedule in it are secrets. */
static EVP_CIPHER_CTX *new_context(const EVP_CIPHER *type, const uint8_t *key, int encrypt)
{
    secret_begin();
    EVP_CIPHER_CTX *ctx = crypto_lib.EVP_CIPHER_CTX_new();
    if (ctx && !(crypto_lib.EVP_CipherInit_ex2(ctx, type, key, NULL, encrypt, NULL) &&
                 crypto_lib.EVP_CIPHER_CTX_set_padding(ctx, 0))) {
        crypto_lib.EVP_CIPHER_CTX_free(ctx);
        ctx = NULL;
    }
    secret_end();
    return ctx;
}

int crypt_cipher_new(const char *spec, const uint8_t *key, size_t key_len, uint32_t sector_size, uint64_t iv_offset,
                     struct crypt_cipher **ret_cipher, struct err *err)
{
    const char *name = find(spec, key_len);
    if (!name)
        return err_say(err, ENOTSUP, "cipher %s with a key of %zu bits is not supported, aes-xts-plain64 with 256 or 512 is", spec,
                       key_len * 8);
    int r = crypt_library_load(err);
    if (r < 0)
        return r;
    struct crypt_cipher *cipher = calloc(1, sizeof *cipher);
    EVP_CIPHER *type = cipher ? crypto_lib.EVP_CIPHER_fetch(NULL, name, NULL) : NULL;
    if (type)
        *cipher = (struct crypt_cipher){new_context(type, key, 1), new_context(type, key, 0), sector_size, iv_offset};
    crypto_lib.EVP_CIPHER_free(type);
    if (!cipher || !cipher->encrypt || !cipher->decrypt) {
        crypt_cipher_free(cipher);
        return err_say(err, ENOMEM, "OpenSSL cannot set up %s; an XTS key whose halves are equal is refused, else locked memory may "
                       "be out (ulimit -l)", name);
    }
    *ret_cipher = cipher;
    return 0;
}

void crypt_cipher_free(struct crypt_cipher *cipher)
{
    if (!cipher)
        return;
    crypto_lib.EVP_CIPHER_CTX_free(cipher->encrypt);
    crypto_lib.EVP_CIPHER_CTX_free(cipher->decrypt);
    free(cipher);
}

uint32_t crypt_cipher_sector_size(const struct crypt_cipher *cipher)
{
    return cipher->sector_size;
}

static bool run(const struct crypt_cipher *cipher, EVP_CIPHER_CTX *ctx, uint64_t offset, uint8_t *data, size_t len)
{
    int size = (int)cipher->sector_size, out;
    uint8_t iv[16] = {0};
    for (size_t at = 0; at < len; at += cipher->sector_size) {
        store_le64(iv, (offset + at) / 512 + cipher->iv_offset);
        if (!crypto_lib.EVP_CipherInit_ex2(ctx, NULL, NULL, iv, -1, NULL) ||
            !crypto_lib.EVP_CipherUpdate(ctx, data + at, &out, data + at, size))
            return false;
    }
    return true;
}

int crypt_encrypt(struct crypt_cipher *cipher, uint64_t offset, uint8_t *data, size_t len)
{
    return run(cipher, cipher->encrypt, offset, data, len) ? 0 : -EIO;
}

/* A sector that lies in several elements. */
static bool decrypt_split(struct crypt_cipher *cipher, uint64_t offset, const struct iovec *iov, unsigned count, size_t skip)
{
    uint8_t sector[CRYPT_SECTOR_MAX];
    iov_read(iov, count, skip, sector, cipher->sector_size);
    bool good = run(cipher, cipher->decrypt, offset, sector, cipher->sector_size);
    iov_write(iov, count, skip, sector, cipher->sector_size);
    return good;
}

int crypt_decrypt(struct crypt_cipher *cipher, uint64_t offset, const struct iovec *iov, unsigned count)
{
    size_t skip = 0; /* bytes of the first element that are done */
    bool good = true;
    while (good && count) {
        size_t whole = (iov->iov_len - skip) / cipher->sector_size * cipher->sector_size;
        if (whole) {
            good = run(cipher, cipher->decrypt, offset, (uint8_t *)iov->iov_base + skip, whole);
        } else if (iov->iov_len > skip) {
            whole = cipher->sector_size;
            good = decrypt_split(cipher, offset, iov, count, skip);
        }
        offset += whole;
        skip += whole;
        while (count && skip >= iov->iov_len) {
            skip -= iov->iov_len;
            iov++;
            count--;
        }
    }
    return good ? 0 : -EIO;
}
