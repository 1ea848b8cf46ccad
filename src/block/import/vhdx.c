/* Hyper-V's VHDX, fixed and dynamic: a table of blocks, with an entry for a bitmap (which only differencing disks have)
 * after as many as one would cover. */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "block/import/vhdx_impl.h"

#define CHUNK 8192u /* entries read at once */
#define MIB_BITS 20
#define STATE_MASK 7u
#define STATE_PRESENT 6u
#define STATE_PARTIAL 7u

static int take_entry(uint64_t entry, uint32_t *ret_place, struct err *err)
{
    uint64_t mib = entry >> MIB_BITS;
    unsigned state = entry & STATE_MASK;
    if (state == STATE_PARTIAL)
        return import_refuse(err, "a differencing vhdx image");
    if (state == STATE_PRESENT && (!mib || mib >= UINT32_MAX))
        return err_say(err, EINVAL, "its block table has impossible places");
    *ret_place = state == STATE_PRESENT ? (uint32_t)mib + 1 : 0;
    return 0;
}

static int read_table(struct import_node *node, const struct vhdx_layout *l, uint64_t blocks, uint32_t *table, struct err *err)
{
    uint64_t part[CHUNK], ratio = (UINT64_C(1) << 23) * l->sector_size / l->block_size; /* blocks to a bitmap */
    uint64_t entries = blocks + (blocks - 1) / ratio;
    int r = 0;
    if (entries > l->table.len / 8)
        return err_say(err, EINVAL, "its block table is too short for its disk");
    for (uint64_t at = 0; r == 0 && at < entries; at += CHUNK) {
        uint64_t n = entries - at < CHUNK ? entries - at : CHUNK;
        r = import_read(node, 0, l->table.offset + at * 8, part, n * 8, err);
        for (uint64_t i = at; r == 0 && i < at + n; i++)
            if (i % (ratio + 1) != ratio)
                r = take_entry(le64toh(part[i - at]), &table[i - i / (ratio + 1)], err);
    }
    return r;
}

static int load(struct import_node *node, const struct block_options *options, struct err *err)
{
    struct vhdx_layout l = {0};
    (void)options;
    int r = vhdx_read_regions(node, &l, err);
    if (r == 0)
        r = vhdx_read_metadata(node, &l, err);
    if (r < 0)
        return r;
    struct import_extent extent = {.len = l.disk_size, .block_size = l.block_size, .unit = 1u << MIB_BITS};
    uint64_t blocks = l.disk_size / l.block_size + (l.disk_size % l.block_size != 0);
    r = import_new_table(node, blocks, &extent.table, err);
    if (r < 0)
        return r;
    r = read_table(node, &l, blocks, extent.table, err);
    if (r == 0)
        return import_add_extent(node, extent, err);
    free(extent.table);
    return r;
}

static int vhdx_open(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    return import_open(options, &block_vhdx, load, ret_node, err);
}

const struct block_class block_vhdx = {
    .name = "vhdx",
    .open = vhdx_open,
    .close = import_close,
    .attach = import_attach,
    .submit = import_submit,
    .status = import_status,
};
