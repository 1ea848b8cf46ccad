/* VirtualBox's VDI, dynamic and static: a header, and a table with the number of each block's place. */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "block/import/import.h"

#define HEADER_LEN 512u
#define SIGNATURE 0xbeda107fu
#define VERSION 0x00010001u
#define ENTRY_ZERO 0xfffffffeu /* and the next: not allocated */
#define CHUNK 16384u           /* entries read at once */
/* offsets in the header; numbers are little-endian */
#define H_SIGNATURE 0x40
#define H_VERSION 0x44
#define H_TYPE 0x4c
#define H_TABLE 0x154
#define H_DATA 0x158
#define H_SECTOR_SIZE 0x168
#define H_DISK_SIZE 0x170
#define H_BLOCK_SIZE 0x178
#define H_BLOCK_EXTRA 0x17c
#define H_BLOCKS 0x180

static int check(const uint8_t *h, struct err *err)
{
    uint32_t type = load_le32(h + H_TYPE), size = load_le32(h + H_BLOCK_SIZE);
    if (load_le32(h + H_SIGNATURE) != SIGNATURE)
        return err_say(err, EINVAL, "it has no vdi header");
    if (load_le32(h + H_VERSION) != VERSION)
        return import_refuse(err, "vdi version %#x", load_le32(h + H_VERSION));
    if (type != 1 && type != 2)
        return import_refuse(err, "a vdi image of type %u (differencing or undo)", type);
    if (load_le32(h + H_SECTOR_SIZE) != BLOCK_SECTOR_SIZE || load_le32(h + H_BLOCK_EXTRA))
        return import_refuse(err, "a vdi image with other sectors, or with data before blocks,");
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
            table[at + i] = le32toh(part[i]) >= ENTRY_ZERO ? 0 : le32toh(part[i]) + 1;
    }
    return r;
}

static int load(struct import_node *node, const struct block_options *options, struct err *err)
{
    uint8_t h[HEADER_LEN];
    (void)options;
    int r = import_read(node, 0, 0, h, sizeof h, err);
    if (r == 0)
        r = check(h, err);
    if (r < 0)
        return r;
    uint64_t size = load_le64(h + H_DISK_SIZE) & ~(uint64_t)(BLOCK_SECTOR_SIZE - 1);
    struct import_extent extent = {
        .len = size, .base = load_le32(h + H_DATA), .block_size = load_le32(h + H_BLOCK_SIZE), .unit = load_le32(h + H_BLOCK_SIZE)};
    uint64_t blocks = size / extent.block_size + (size % extent.block_size != 0);
    if (load_le32(h + H_BLOCKS) < blocks)
        return err_say(err, EINVAL, "a disk of %llu bytes needs more than %u blocks", (unsigned long long)size, load_le32(h + H_BLOCKS));
    r = import_new_table(node, blocks, &extent.table, err);
    if (r < 0)
        return r;
    r = read_table(node, load_le32(h + H_TABLE), (uint32_t)blocks, extent.table, err);
    if (r == 0)
        return import_add_extent(node, extent, err);
    free(extent.table);
    return r;
}

static int vdi_open(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    return import_open(options, &block_vdi, load, ret_node, err);
}

const struct block_class block_vdi = {
    .name = "vdi",
    .open = vdi_open,
    .close = import_close,
    .attach = import_attach,
    .submit = import_submit,
    .status = import_status,
};
