/* Virtual PC's VHD (Microsoft, Virtual Hard Disk Image Format Specification 1.0), fixed and dynamic: a footer, and for
 * dynamic disks a header and a table with the sector of each block. Before a block's data is a bitmap of the sectors that
 * were written; the others are zeroes in the file as well. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/import/import.h"

#define FOOTER_LEN 512u
#define HEADER_LEN 1024u
#define CHUNK 16384u
#define TYPE_FIXED 2u
#define TYPE_DYNAMIC 3u
#define TYPE_DIFFERENCING 4u
/* offsets in the footer; numbers are big-endian */
#define F_VERSION 12
#define F_HEADER 16
#define F_SIZE 48
#define F_TYPE 60
#define F_CHECKSUM 64
/* in the header */
#define H_TABLE 16
#define H_VERSION 24
#define H_ENTRIES 28
#define H_BLOCK_SIZE 32
#define H_CHECKSUM 36

static bool sum_fits(const uint8_t *data, size_t len, size_t checksum_at)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i++)
        if (i < checksum_at || i >= checksum_at + 4)
            sum += data[i];
    return load_be32(data + checksum_at) == ~sum;
}

/* At the end; a dynamic disk has a copy at the beginning. */
static int read_footer(struct import_node *node, uint8_t footer[FOOTER_LEN], struct err *err)
{
    uint64_t size = node->files[0]->size;
    const uint64_t places[] = {size < FOOTER_LEN ? 0 : size - FOOTER_LEN, 0};
    for (unsigned i = 0; i < 2; i++) {
        int r = import_read(node, 0, places[i], footer, FOOTER_LEN, err);
        if (r < 0)
            return r;
        if (memcmp(footer, "conectix", 8) == 0 && sum_fits(footer, FOOTER_LEN, F_CHECKSUM))
            return 0;
    }
    return err_say(err, EINVAL, "it has no vhd footer, or a damaged one");
}

static int check_header(const uint8_t *h, struct err *err)
{
    uint32_t size = load_be32(h + H_BLOCK_SIZE);
    if (memcmp(h, "cxsparse", 8) != 0 || !sum_fits(h, HEADER_LEN, H_CHECKSUM))
        return err_say(err, EINVAL, "its header is damaged");
    if (load_be32(h + H_VERSION) >> 16 != 1)
        return import_refuse(err, "vhd header version %#x", load_be32(h + H_VERSION));
    if (size < 4096 || size > IMPORT_BLOCK_MAX || size & (size - 1))
        return err_say(err, EINVAL, "blocks of %u bytes are impossible", size);
    return 0;
}

static int read_table(struct import_node *node, uint64_t offset, uint32_t count, uint32_t *table, struct err *err)
{
    uint32_t part[CHUNK];
    int r = 0;
    for (uint32_t at = 0; r == 0 && at < count; at += CHUNK) {
        uint32_t n = count - at < CHUNK ? count - at : CHUNK;
        r = import_read(node, 0, offset + (uint64_t)at * 4, part, (uint64_t)n * 4, err);
        for (uint32_t i = 0; r == 0 && i < n; i++)
            table[at + i] = be32toh(part[i]) + 1; /* all ones: not there */
    }
    return r;
}

static int load_dynamic(struct import_node *node, const uint8_t *footer, uint64_t size, struct err *err)
{
    uint8_t h[HEADER_LEN];
    int r = import_read(node, 0, load_be64(footer + F_HEADER), h, sizeof h, err);
    if (r == 0)
        r = check_header(h, err);
    if (r < 0)
        return r;
    struct import_extent extent = {.len = size, .block_size = load_be32(h + H_BLOCK_SIZE), .unit = BLOCK_SECTOR_SIZE};
    extent.base = (extent.block_size / BLOCK_SECTOR_SIZE / 8 + BLOCK_SECTOR_SIZE - 1) & ~(uint64_t)(BLOCK_SECTOR_SIZE - 1);
    uint64_t blocks = size / extent.block_size + (size % extent.block_size != 0);
    if (load_be32(h + H_ENTRIES) < blocks)
        return err_say(err, EINVAL, "a disk of %llu bytes needs more than %u blocks", (unsigned long long)size, load_be32(h + H_ENTRIES));
    r = import_new_table(node, blocks, &extent.table, err);
    if (r < 0)
        return r;
    r = read_table(node, load_be64(h + H_TABLE), (uint32_t)blocks, extent.table, err);
    if (r == 0)
        return import_add_extent(node, extent, err);
    free(extent.table);
    return r;
}

static int load(struct import_node *node, const struct block_options *options, struct err *err)
{
    uint8_t footer[FOOTER_LEN];
    (void)options;
    int r = read_footer(node, footer, err);
    if (r < 0)
        return r;
    uint64_t size = load_be64(footer + F_SIZE) & ~(uint64_t)(BLOCK_SECTOR_SIZE - 1), file = node->files[0]->size;
    uint32_t type = load_be32(footer + F_TYPE);
    if (load_be32(footer + F_VERSION) >> 16 != 1)
        return import_refuse(err, "vhd version %#x", load_be32(footer + F_VERSION));
    if (type == TYPE_DYNAMIC)
        return load_dynamic(node, footer, size, err);
    if (type == TYPE_DIFFERENCING)
        return import_refuse(err, "a differencing vhd image");
    if (type != TYPE_FIXED)
        return import_refuse(err, "a vhd image of type %u", type);
    if (size > file)
        return err_say(err, EINVAL, "it is cut off: %llu of %llu bytes are there", (unsigned long long)file, (unsigned long long)size);
    return import_add_extent(node, (struct import_extent){.len = size}, err);
}

static int vhd_open(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    return import_open(options, &block_vhd, load, ret_node, err);
}

const struct block_class block_vhd = {
    .name = "vhd",
    .open = vhd_open,
    .close = import_close,
    .attach = import_attach,
    .submit = import_submit,
    .status = import_status,
};
