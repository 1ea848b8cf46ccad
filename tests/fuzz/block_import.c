/* Fuzz target: images of other products. The first byte chooses the format. Whatever a file holds, opening, mapping and
 * reading it end soon, with errors at worst. Checksums of VHD and VHDX are made right first, and the parts of a VHDX image,
 * which are far apart, are taken from one another's neighbours in the input. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "block/block.h"

#define STEPS_MAX 32
#define VHD_LEN 512u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int look(void *arg)
{
    static uint8_t buf[65536];
    struct block_node *node = arg;
    struct block_extent extent;
    uint64_t at = 0;
    for (unsigned i = 0; i < STEPS_MAX && at < node->size; i++, at += extent.len) {
        if (block_status(node, at, node->size - at, &extent) < 0)
            break;
        assert(extent.len && extent.len <= node->size - at);
        int ignored = block_do(node, BLOCK_READ, at, buf, extent.len < sizeof buf ? extent.len : sizeof buf);
        (void)ignored;
    }
    if (node->size > VHD_LEN)
        (void)!block_do(node, BLOCK_READ, node->size - VHD_LEN, buf, VHD_LEN);
    return 0;
}

static void vhd_sum(uint8_t *data, size_t len, size_t at)
{
    uint32_t sum = 0;
    memset(data + at, 0, 4);
    for (size_t i = 0; i < len; i++)
        sum += data[i];
    store_be32(data + at, ~sum);
}

static void vhdx_sum(uint8_t *data, size_t len)
{
    uint32_t crc = UINT32_MAX;
    memset(data + 4, 0, 4);
    for (size_t i = 0; i < len; i++) {
        crc ^= data[i];
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    store_le32(data + 4, ~crc);
}

/* Header, regions, metadata table, metadata items, block table: where the parts of the input go. */
static uint8_t *spread_vhdx(const uint8_t *data, size_t size, size_t *ret_size)
{
    static const struct {
        size_t len, at;
    } parts[] = {{96, 0x10000}, {160, 0x30000}, {512, 0x50000}, {64, 0x60000}, {4096, 0x61000}};
    uint8_t *image = calloc(1, *ret_size = 0x62000);
    if (!image)
        abort();
    memcpy(image, "vhdxfile", 8);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t n = size < parts[i].len ? size : parts[i].len;
        memcpy(image + parts[i].at, data, n);
        data += n;
        size -= n;
    }
    vhdx_sum(image + parts[0].at, 4096);
    vhdx_sum(image + parts[1].at, 65536);
    return image;
}

static void fix_vhd(uint8_t *image, size_t size)
{
    if (size >= VHD_LEN && memcmp(image + size - VHD_LEN, "conectix", 8) == 0)
        vhd_sum(image + size - VHD_LEN, VHD_LEN, 64);
    for (size_t at = 0; at + 1024 <= size; at += VHD_LEN)
        if (memcmp(image + at, "cxsparse", 8) == 0)
            vhd_sum(image + at, 1024, 36);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const formats[] = {"vmdk", "vhd", "vhdx", "vdi"};
    struct err err = {0};
    struct block_node *node;
    if (!size)
        return 0;
    int fd = memfd_create("image", MFD_CLOEXEC);
    bool vhdx = data[0] % 4 == 2;
    size_t len = size - 1;
    uint8_t *image = vhdx ? spread_vhdx(data + 1, len, &len) : malloc(size);
    if (fd < 0 || !image)
        abort();
    if (!vhdx) {
        memcpy(image, data + 1, len);
        fix_vhd(image, len);
    }
    if (write(fd, image, len) != (ssize_t)len)
        abort();
    struct block_options options = {.driver = formats[data[0] % 4], .fd = dup(fd), .read_only = true};
    if (block_open(&options, &node, &err) < 0) {
        assert(err.code && *err.message);
        close(options.fd);
    } else {
        if (block_run_alone(node, look, node, &err) < 0)
            abort();
        block_close(node);
    }
    free(image);
    close(fd);
    return 0;
}
