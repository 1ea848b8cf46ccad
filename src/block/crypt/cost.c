/* What opening a header may cost, and what only its JSON says. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/crypt/luks_impl.h"

#define SLOTS_MAX 32
#define DIGEST_ITERATIONS_MAX 100000000

static uint64_t memory_limit(void)
{
    uint64_t half = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2;
    return half < LUKS_MEMORY_MAX ? half : LUKS_MEMORY_MAX;
}

/* As far as it goes: a sum that wraps would look cheap. */
static void add_product(uint64_t *sum, uint64_t a, uint64_t b)
{
    uint64_t product;
    if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(*sum, product, sum))
        *sum = UINT64_MAX;
}

int luks_check_cost(struct luks_copy *copy, struct luks_info *info, struct err *err)
{
    for (int slot = 0; slot < SLOTS_MAX; slot++) {
        crypt_keyslot_info state = crypt_lib.crypt_keyslot_status(copy->device, slot);
        struct crypt_pbkdf_type kdf;
        if (state != CRYPT_SLOT_ACTIVE && state != CRYPT_SLOT_ACTIVE_LAST)
            continue;
        info->slots++;
        if (crypt_lib.crypt_keyslot_get_pbkdf(copy->device, slot, &kdf) < 0)
            continue; /* of a kind that no key opens */
        uint64_t memory = (uint64_t)kdf.max_memory_kb << 10;
        if (memory)
            add_product(&info->memory_passes, memory, kdf.iterations);
        else
            info->iterations += kdf.iterations;
        info->memory = memory > info->memory ? memory : info->memory;
    }
    if (info->iterations > LUKS_ITERATIONS_MAX || info->memory_passes > LUKS_MEMORY_PASSES_MAX)
        return err_say(err, EFBIG, "its header asks for %llu key derivation iterations and %llu MiB of memory passes, more than any "
                       "sane one", (unsigned long long)info->iterations, (unsigned long long)(info->memory_passes >> 20));
    if (info->memory > memory_limit())
        return err_say(err, EFBIG, "its header asks for %llu MiB of memory to try a key, more than the %llu MiB allowed here; "
                       "cryptsetup luksConvertKey --pbkdf-memory lowers it", (unsigned long long)(info->memory >> 20),
                       (unsigned long long)(memory_limit() >> 20));
    return 0;
}

static int check_digests(const json_t *root, struct err *err)
{
    json_t *digests = json_object_get(root, "digests");
    for (void *at = json_object_iter(digests); at; at = json_object_iter_next(digests, at)) {
        json_int_t iterations = json_integer_value(json_object_get(json_object_iter_value(at), "iterations"));
        if (iterations < 0 || iterations > DIGEST_ITERATIONS_MAX)
            return err_say(err, EFBIG, "its header asks for %lld iterations to verify a key, more than any sane one",
                           (long long)iterations);
    }
    return 0;
}

static uint64_t number(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? strtoull(text, NULL, 10) : 0; /* libcryptsetup has checked it */
}

static int read_segment(const json_t *root, struct luks_info *info, struct err *err)
{
    const json_t *segments = json_object_get(root, "segments"), *segment = json_object_get(segments, "0");
    const char *type = json_string_value(json_object_get(segment, "type"));
    if (json_object_size(segments) != 1 || !type)
        return err_say(err, ENOTSUP, "it has %zu segments, and only one is supported", json_object_size(segments));
    if (strcmp(type, "crypt") != 0 || json_object_get(segment, "integrity"))
        return err_say(err, ENOTSUP, "its segment is of the type '%.20s'%s, which is not supported", type,
                       json_object_get(segment, "integrity") ? " with integrity" : "");
    info->iv_offset = number(segment, "iv_tweak");
    info->payload_len = number(segment, "size"); /* "dynamic": 0 */
    return 0;
}

int luks_read_json(struct luks_copy *copy, struct luks_info *info, struct err *err)
{
    const char *text;
    if (crypt_lib.crypt_dump_json(copy->device, &text, 0) < 0)
        return err_say(err, EINVAL, "its header cannot be read");
    json_t *root = json_loads(text, 0, NULL);
    int r = root ? check_digests(root, err) : err_say(err, EINVAL, "its header's JSON cannot be read");
    if (r == 0)
        r = read_segment(root, info, err);
    json_decref(root);
    return r;
}
