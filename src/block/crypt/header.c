/* Reading headers: a bounded part of the image is copied to memory, libcryptsetup checks it, and what it then says of
 * itself is checked against what we support and what it may cost. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/own.h"
#include "block/crypt/luks_impl.h"

#define CHUNK (UINT64_C(1) << 20)
#define LUKS1_HEADER_MAX (UINT64_C(16) << 20)  /* eight slots of 512-bit keys take 2 MiB */
#define LUKS2_METADATA_MAX (UINT64_C(8) << 20) /* two copies of 4 MiB */
#define LUKS2_HEADER_MAX (LUKS2_METADATA_MAX + (UINT64_C(128) << 20))
#define FIRST_READ 4096u
#define LUKS1_PAYLOAD 104 /* in sectors */
#define LUKS1_DIGEST_ITERATIONS 164

static const uint8_t magic[8] = {'L', 'U', 'K', 'S', 0xba, 0xbe, 0, 0}; /* and the version */

struct reading {
    struct block_node *node;
    uint64_t offset, len; /* of the header in the node */
    const char *name;
};

/* Holes stay holes. */
static bool all_zero(const uint8_t *data, size_t len)
{
    return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

/* Copies [from, to) of the image, as far as there is any. */
static int copy_range(const struct reading *in, struct luks_copy *copy, uint64_t from, uint64_t to, struct err *err)
{
    own_free uint8_t *data = aligned_alloc(4096, CHUNK);
    if (!data)
        return err_set(err, ENOMEM, "LUKS header");
    for (uint64_t at = from; at < to && at < in->len; at += CHUNK) {
        uint64_t len = to - at < CHUNK ? to - at : CHUNK;
        int r = block_read_alone(in->node, in->offset + at, data, CHUNK, err);
        if (r < 0)
            return r;
        len = in->len - at < len ? in->len - at : len;
        if (!all_zero(data, len) && pwrite(copy->fd, data, len, (off_t)at) != (ssize_t)len)
            return err_set(err, errno, "LUKS header in memory");
    }
    return 0;
}

static int copy_header(const struct reading *in, struct luks_copy *copy, unsigned *ret_version, struct err *err)
{
    uint8_t start[FIRST_READ];
    int r = block_read_alone(in->node, in->offset, start, sizeof start, err);
    if (r < 0)
        return r;
    unsigned version = load_be16(start + 6);
    if (memcmp(start, magic, 6) != 0 && memcmp(start, "SKUL\xba\xbe", 6) != 0 && !all_zero(start, sizeof start))
        return err_say(err, EINVAL, "it has no LUKS header");
    if (version == 1) {
        uint64_t payload = (uint64_t)load_be32(start + LUKS1_PAYLOAD) * 512;
        uint32_t iterations = load_be32(start + LUKS1_DIGEST_ITERATIONS);
        if (iterations > LUKS_ITERATIONS_MAX)
            return err_say(err, EFBIG, "its header asks for %u iterations to verify a key, more than any sane one", iterations);
        r = copy_range(in, copy, 0, payload < LUKS1_HEADER_MAX ? payload : LUKS1_HEADER_MAX, err);
    } else { /* LUKS2, or damaged there: a second copy of the header may be sound */
        r = copy_range(in, copy, 0, LUKS2_METADATA_MAX, err);
    }
    *ret_version = version;
    return r;
}

/* The key slots of LUKS2, whose place only the metadata says. */
static int copy_slots(const struct reading *in, struct luks_copy *copy, struct err *err)
{
    uint64_t metadata, slots;
    if (crypt_lib.crypt_get_metadata_size(copy->device, &metadata, &slots) < 0 || metadata > LUKS2_METADATA_MAX / 2 ||
        slots > LUKS2_HEADER_MAX - LUKS2_METADATA_MAX)
        return err_say(err, EINVAL, "its header has impossible sizes");
    uint64_t end = 2 * metadata + slots;
    return end > LUKS2_METADATA_MAX ? copy_range(in, copy, LUKS2_METADATA_MAX, end, err) : 0;
}

static int check_requirements(struct luks_copy *copy, struct err *err)
{
    uint32_t flags = 0;
    if (crypt_lib.crypt_persistent_flags_get(copy->device, CRYPT_FLAGS_REQUIREMENTS, &flags) == 0 && flags)
        return err_say(err, ENOTSUP, "it is being re-encrypted or needs a feature that is not known; finish with cryptsetup reencrypt");
    return 0;
}

static int read_info(struct luks_copy *copy, struct luks_info *info, struct err *err)
{
    struct crypt_device *device = copy->device;
    const char *uuid = crypt_lib.crypt_get_uuid(device), *cipher = crypt_lib.crypt_get_cipher(device);
    const char *mode = crypt_lib.crypt_get_cipher_mode(device);
    info->version = strcmp(crypt_lib.crypt_get_type(device), CRYPT_LUKS1) == 0 ? 1 : 2;
    info->payload_offset = crypt_lib.crypt_get_data_offset(device) * 512;
    info->sector_size = (uint32_t)crypt_lib.crypt_get_sector_size(device);
    info->key_bits = (unsigned)crypt_lib.crypt_get_volume_key_size(device) * 8;
    snprintf(info->uuid, sizeof info->uuid, "%s", uuid ? uuid : "");
    snprintf(info->cipher, sizeof info->cipher, "%s-%s", cipher ? cipher : "?", mode ? mode : "?");
    if (info->sector_size < 512 || info->sector_size > CRYPT_SECTOR_MAX || info->sector_size & (info->sector_size - 1))
        return err_say(err, EINVAL, "sectors of %u bytes are impossible", info->sector_size);
    int r = info->version == 2 ? check_requirements(copy, err) : 0;
    if (r == 0 && info->version == 2)
        r = luks_read_json(copy, info, err);
    return r < 0 ? r : luks_check_cost(copy, info, err);
}

static int open_key(struct luks_copy *copy, const struct luks_info *info, const struct block_key *key,
                    struct crypt_cipher **ret_cipher, struct err *err)
{
    size_t len = info->key_bits / 8;
    uint8_t *volume_key = len && len <= 1024 ? secret_alloc(len) : NULL;
    if (!volume_key)
        return err_say(err, ENOMEM, "a key of %zu bytes cannot be locked in memory (ulimit -l)", len);
    int r = crypt_lib.crypt_volume_key_get(copy->device, CRYPT_ANY_SLOT, (char *)volume_key, &len, (const char *)key->bytes,
                                           key->len);
    if (r >= 0)
        r = crypt_cipher_new(info->cipher, volume_key, len, info->sector_size, info->iv_offset, ret_cipher, err);
    else if (r == -EPERM)
        r = err_say(err, EACCES, "the key in '%.80s' does not open it%s", key->name,
                    key->bytes[key->len - 1] == '\n' ? "; it ends in a line end, which is part of it" : "");
    else if (r == -ENOENT)
        r = err_say(err, ENOKEY, "it has no key slot in use: its key is lost");
    else
        r = err_say(err, -r, "its key slots cannot be opened: %s", *copy->message ? copy->message : strerror(-r));
    secret_free(volume_key);
    return r;
}

static int load(const struct reading *in, struct luks_copy *copy, const struct block_key *key, struct luks_info *info,
                struct crypt_cipher **ret_cipher, struct err *err)
{
    unsigned version = 0;
    int r = copy_header(in, copy, &version, err);
    if (r < 0)
        return r;
    r = crypt_lib.crypt_load(copy->device, CRYPT_LUKS, NULL);
    if (r < 0)
        return err_say(err, EINVAL, "its LUKS header is damaged or cut off%s%s", *copy->message ? ": " : "", copy->message);
    r = read_info(copy, info, err);
    if (r == 0 && info->version == 2)
        r = copy_slots(in, copy, err);
    return r < 0 || !key ? r : open_key(copy, info, key, ret_cipher, err);
}

int luks_load(struct block_node *node, uint64_t offset, uint64_t len, const struct block_key *key, const char *name,
              struct luks_info *ret_info, struct crypt_cipher **ret_cipher, struct err *err)
{
    struct reading in = {.node = node, .offset = offset, .len = len, .name = name};
    struct luks_copy copy;
    struct luks_info info = {0};
    *ret_cipher = NULL;
    /* a sound header may describe a payload that is not there yet */
    int r = luks_copy_open(&copy, len < LUKS2_HEADER_MAX ? LUKS2_HEADER_MAX * 2 : len, err);
    if (r == 0)
        r = load(&in, &copy, key, &info, ret_cipher, err);
    luks_copy_close(&copy);
    if (r < 0)
        return err_ctx(err, "disk '%s'", name);
    *ret_info = info;
    return 0;
}
