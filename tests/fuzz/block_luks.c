/* Fuzz target: LUKS headers. Whatever a file holds, opening it without a key ends soon; where trying a key is cheap, that is
 * done too. LUKS2 checksums are made right first, so that what is changed in the JSON gets through. */
#include <assert.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "block/crypt/luks.h"

#define FILE_SIZE (UINT64_C(24) << 20) /* sparse: behind the input are zeroes */
#define HEADER 16384u                  /* of LUKS2; there are two */
#define CHECKSUM 0x1c0
#define CHEAP_ITERATIONS 20000u
#define CHEAP_MEMORY_PASSES (UINT64_C(4) << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fix_checksum(uint8_t *header)
{
    memset(header + CHECKSUM, 0, 64);
    EVP_Digest(header, HEADER, header + CHECKSUM, NULL, EVP_sha256(), NULL);
}

static int use(void *arg)
{
    static uint8_t out[4096], in[4096];
    struct block_node *node = arg;
    memset(out, 7, sizeof out);
    if (node->size >= sizeof out && block_do(node, BLOCK_WRITE, 0, out, sizeof out) == 0 &&
        block_do(node, BLOCK_READ, 0, in, sizeof in) == 0)
        assert(memcmp(in, out, sizeof in) == 0);
    return 0;
}

/* False when it cannot be opened. */
static bool open_image(int fd, const struct block_key *key, struct luks_info *info)
{
    struct err err = {0};
    struct block_node *node;
    struct block_options options = {.driver = "luks", .fd = dup(fd), .key = key, .no_key = !key};
    if (block_open(&options, &node, &err) < 0) {
        assert(err.code && *err.message);
        close(options.fd);
        return false;
    }
    luks_get_info(node, info);
    if (key && block_run_alone(node, use, node, &err) < 0)
        abort();
    block_close(node);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char name[] = "key";
    static uint8_t bytes[] = {'k', 'e', 'y'};
    const struct block_key key = {bytes, sizeof bytes, name};
    struct luks_info info;
    int fd = memfd_create("image", MFD_CLOEXEC);
    uint8_t *copy = malloc(size ? size : 1);
    if (fd < 0 || !copy)
        abort();
    memcpy(copy, data, size);
    for (size_t at = 0; at + HEADER <= size && at < 2 * HEADER && load_be16(copy + 6) == 2; at += HEADER)
        fix_checksum(copy + at);
    if (write(fd, copy, size) != (ssize_t)size || ftruncate(fd, FILE_SIZE) < 0)
        abort();
    if (open_image(fd, NULL, &info) && info.iterations <= CHEAP_ITERATIONS && info.memory_passes <= CHEAP_MEMORY_PASSES)
        open_image(fd, &key, &info);
    free(copy);
    close(fd);
    return 0;
}
