/* Making headers. Keys are files as a rule, with all the entropy they need; so key derivation costs what is recommended for
 * servers and no more, and machines start soon. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/own.h"
#include "block/crypt/luks_impl.h"

#define CHUNK (UINT64_C(64) << 10)
#define HEADER_ROOM (UINT64_C(64) << 20)

const struct luks_create luks_create_default = {.version = 2, .sector_size = 512, .key_bits = 512};

/* RFC 9106 §4, the second recommended option. */
static const struct crypt_pbkdf_type argon2 = {.type = CRYPT_KDF_ARGON2ID,
                                               .hash = "sha256",
                                               .iterations = 4, /* libcryptsetup's least */
                                               .max_memory_kb = 65536,
                                               .parallel_threads = 4,
                                               .flags = CRYPT_PBKDF_NO_BENCHMARK};
static const struct crypt_pbkdf_type pbkdf2 = {
    .type = CRYPT_KDF_PBKDF2, .hash = "sha256", .iterations = 600000, .flags = CRYPT_PBKDF_NO_BENCHMARK};

static int check(const struct luks_create *c, struct err *err)
{
    if (c->version != 1 && c->version != 2)
        return err_say(err, EINVAL, "LUKS has the versions 1 and 2");
    if (c->key_bits != 256 && c->key_bits != 512)
        return err_say(err, EINVAL, "key_bits must be 256 (AES-128) or 512 (AES-256)");
    if (c->sector_size < 512 || c->sector_size > CRYPT_SECTOR_MAX || c->sector_size & (c->sector_size - 1))
        return err_say(err, EINVAL, "sector_size must be 512, 1024, 2048 or 4096");
    if (c->version == 1 && c->sector_size != 512)
        return err_say(err, EINVAL, "sectors of %u bytes need LUKS version 2", c->sector_size);
    return 0;
}

static int format(struct luks_copy *copy, const struct luks_create *c, const struct block_key *key)
{
    struct crypt_params_luks1 luks1 = {.hash = "sha256"};
    struct crypt_params_luks2 luks2 = {.sector_size = c->sector_size};
    bool old = c->version == 1;
    struct crypt_pbkdf_type kdf = old ? pbkdf2 : argon2;
    if (c->iterations)
        kdf.iterations = c->iterations;
    luks2.pbkdf = &kdf;
    int r = crypt_lib.crypt_set_pbkdf_type(copy->device, &kdf);
    if (r == 0)
        r = crypt_lib.crypt_format(copy->device, old ? CRYPT_LUKS1 : CRYPT_LUKS2, "aes", "xts-plain64", NULL, NULL, c->key_bits / 8,
                         old ? (void *)&luks1 : (void *)&luks2);
    if (r == 0)
        r = crypt_lib.crypt_keyslot_add_by_volume_key(copy->device, CRYPT_ANY_SLOT, NULL, 0, (const char *)key->bytes, key->len);
    return r;
}

int luks_format(const struct luks_create *create, const struct block_key *key, int *ret_fd, uint64_t *ret_len, struct err *err)
{
    struct luks_copy copy;
    int r = check(create, err);
    if (r == 0 && !key)
        r = err_say(err, EINVAL, "an encrypted image needs a key: --key FILE");
    if (r < 0)
        return r;
    r = luks_copy_open(&copy, HEADER_ROOM, err);
    if (r == 0) {
        r = format(&copy, create, key);
        if (r < 0)
            r = err_say(err, -r, "LUKS header: %s", *copy.message ? copy.message : strerror(-r));
    }
    if (r >= 0) {
        *ret_len = crypt_lib.crypt_get_data_offset(copy.device) * 512;
        *ret_fd = TAKE_FD(copy.fd);
        r = 0;
    }
    luks_copy_close(&copy);
    return r;
}

/* ---- images ---- */

static int copy_chunk(int from, int to, uint64_t offset, size_t len)
{
    uint8_t data[CHUNK];
    if (pread(from, data, len, (off_t)offset) != (ssize_t)len)
        return -EIO;
    if (data[0] == 0 && memcmp(data, data + 1, len - 1) == 0)
        return 0; /* the file is empty */
    return pwrite(to, data, len, (off_t)offset) == (ssize_t)len ? 0 : errno ? -errno : -EIO;
}

/* What makes it a header last: an image that was not finished is none. */
static int write_header(int from, int to, uint64_t len)
{
    int r = 0;
    for (uint64_t at = 4096; r == 0 && at < len; at += CHUNK)
        r = copy_chunk(from, to, at, len - at < CHUNK ? len - at : CHUNK);
    if (r == 0 && fdatasync(to) < 0)
        r = -errno;
    if (r == 0)
        r = copy_chunk(from, to, 0, 4096);
    if (r == 0 && fdatasync(to) < 0)
        r = -errno;
    return r;
}

int luks_create(const char *path, uint64_t size, const struct luks_create *create, const struct block_key *key, struct err *err)
{
    own_fd int header = -1, fd = -1;
    uint64_t len = 0;
    if (size > INT64_MAX - 2 * HEADER_ROOM)
        return err_say(err, EFBIG, "no file can hold %llu bytes", (unsigned long long)size);
    int r = luks_format(create, key, &header, &len, err);
    if (r < 0)
        return r;
    size = (size + create->sector_size - 1) / create->sector_size * create->sector_size;
    fd = block_open_new(path, err);
    if (fd < 0)
        return fd;
    if (ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)(len + size)) < 0)
        return err_set(err, errno, "'%s'", path);
    r = write_header(header, fd, len);
    return r < 0 ? err_set(err, -r, "'%s'", path) : 0;
}
