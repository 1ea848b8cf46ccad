/* VMware's VMDK: sparse extents. A directory names tables of 512 grains each; a grain is a block of the disk. In
 * stream-optimized images grains are compressed, and the directory is named by a second header at the end. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/own.h"
#include "block/import/vmdk_impl.h"

#define HEADER_LEN 512u
#define SECTOR UINT64_C(512)
#define FOOTER_BACK 1024u /* bytes from the end */
#define AT_END UINT64_MAX
#define TABLE_GRAINS 512u
#define GRAIN_ZERO 1u
#define CAPACITY_MAX (UINT64_C(1) << 40) /* sectors */
#define FLAG_ZERO_GRAINS 4u
#define FLAG_COMPRESSED 0x10000u
#define COMPRESS_DEFLATE 1u
/* offsets in the header; numbers are little-endian */
#define H_VERSION 4
#define H_FLAGS 8
#define H_CAPACITY 12
#define H_GRAIN_SIZE 20
#define H_DESCRIPTOR 28
#define H_DESCRIPTOR_SIZE 36
#define H_TABLE_GRAINS 44
#define H_DIRECTORY 56
#define H_NEWLINES 73
#define H_COMPRESSION 77

static int check_header(const uint8_t *h, struct err *err)
{
    uint64_t grain = load_le64(h + H_GRAIN_SIZE);
    uint32_t grains = load_le32(h + H_TABLE_GRAINS), flags = load_le32(h + H_FLAGS);
    if (memcmp(h, VMDK_MAGIC, 4) != 0)
        return err_say(err, EINVAL, "it has no vmdk header");
    if (!load_le32(h + H_VERSION) || load_le32(h + H_VERSION) > 3)
        return import_refuse(err, "vmdk version %u", load_le32(h + H_VERSION));
    if (memcmp(h + H_NEWLINES, "\n \r\n", 4) != 0)
        return err_say(err, EINVAL, "it was damaged by a transfer as text");
    if (grain < 8 || grain > IMPORT_BLOCK_MAX / SECTOR || grain & (grain - 1) || grains != TABLE_GRAINS)
        return err_say(err, EINVAL, "tables of %u grains of %llu sectors are impossible", grains, (unsigned long long)grain);
    if (load_le64(h + H_CAPACITY) > CAPACITY_MAX)
        return err_say(err, EFBIG, "it claims %llu sectors, more than any disk has", (unsigned long long)load_le64(h + H_CAPACITY));
    if (flags & FLAG_COMPRESSED && load_le16(h + H_COMPRESSION) != COMPRESS_DEFLATE)
        return import_refuse(err, "vmdk compression %u", load_le16(h + H_COMPRESSION));
    return 0;
}

/* The header that counts: the one at the end when the first one says so. */
static int read_header(struct import_node *node, unsigned file, uint8_t h[HEADER_LEN], struct err *err)
{
    int r = import_read(node, file, 0, h, HEADER_LEN, err);
    if (r == 0)
        r = check_header(h, err);
    if (r < 0 || load_le64(h + H_DIRECTORY) != AT_END)
        return r;
    uint64_t size = node->files[file]->size;
    r = size < FOOTER_BACK ? err_say(err, EINVAL, "it is cut off") : import_read(node, file, size - FOOTER_BACK, h, HEADER_LEN, err);
    return r < 0 ? r : check_header(h, err);
}

struct tables {
    uint32_t *directory, *grains; /* grains: one table as stored */
    uint64_t blocks;
    bool zero_grains;
};

static int read_tables(struct import_node *node, unsigned file, struct tables *t, uint32_t *table, struct err *err)
{
    for (uint64_t at = 0; at < t->blocks; at += TABLE_GRAINS) {
        uint32_t sector = le32toh(t->directory[at / TABLE_GRAINS]);
        if (!sector)
            continue;
        int r = import_read(node, file, sector * SECTOR, t->grains, TABLE_GRAINS * UINT64_C(4), err);
        if (r < 0)
            return r;
        for (uint32_t i = 0; i < TABLE_GRAINS && at + i < t->blocks; i++) {
            uint32_t grain = le32toh(t->grains[i]);
            bool zero = !grain || (t->zero_grains && grain == GRAIN_ZERO);
            table[at + i] = zero ? 0 : grain == UINT32_MAX ? grain : grain + 1;
        }
    }
    return 0;
}

static int load_tables(struct import_node *node, unsigned file, const uint8_t *h, uint64_t blocks, uint32_t *table, struct err *err)
{
    struct tables t = {.blocks = blocks, .zero_grains = load_le32(h + H_FLAGS) & FLAG_ZERO_GRAINS};
    uint64_t len = (blocks + TABLE_GRAINS - 1) / TABLE_GRAINS * 4, at = load_le64(h + H_DIRECTORY);
    if (at > INT64_MAX / SECTOR)
        return err_say(err, EINVAL, "its grain directory lies beyond the end of the file");
    own_free uint32_t *directory = malloc(len), *grains = malloc(TABLE_GRAINS * sizeof *grains);
    if (!directory || !grains)
        return err_set(err, ENOMEM, "grain directory");
    t.directory = directory;
    t.grains = grains;
    int r = import_read(node, file, at * SECTOR, directory, len, err);
    return r < 0 ? r : read_tables(node, file, &t, table, err);
}

int vmdk_load_sparse(struct import_node *node, unsigned file, struct err *err)
{
    uint8_t h[HEADER_LEN];
    int r = read_header(node, file, h, err);
    if (r < 0)
        return r;
    struct import_extent extent = {.len = load_le64(h + H_CAPACITY) * SECTOR,
                                   .file = file,
                                   .block_size = (uint32_t)(load_le64(h + H_GRAIN_SIZE) * SECTOR),
                                   .unit = SECTOR,
                                   .packed = load_le32(h + H_FLAGS) & FLAG_COMPRESSED};
    uint64_t blocks = extent.len / extent.block_size + (extent.len % extent.block_size != 0);
    r = import_new_table(node, blocks, &extent.table, err);
    if (r < 0)
        return r;
    r = load_tables(node, file, h, blocks, extent.table, err);
    if (r == 0)
        return import_add_extent(node, extent, err);
    free(extent.table);
    return r;
}

/* One file: the descriptor in it says whether it stands on a parent. */
static int load_single(struct import_node *node, const struct block_options *options, const uint8_t *h, struct err *err)
{
    uint64_t at = load_le64(h + H_DESCRIPTOR), sectors = load_le64(h + H_DESCRIPTOR_SIZE), len = sectors * SECTOR;
    if (!at || !sectors)
        return vmdk_load_sparse(node, 0, err);
    if (at > INT64_MAX / SECTOR || sectors > VMDK_DESCRIPTOR_MAX / SECTOR)
        return err_say(err, EINVAL, "its descriptor lies beyond the end of the file");
    own_free char *text = calloc(1, len + 1);
    if (!text)
        return err_set(err, ENOMEM, "descriptor");
    int r = import_read(node, 0, at * SECTOR, text, len, err);
    if (r == 0)
        r = vmdk_load_descriptor(node, options, text, false, err);
    return r < 0 ? r : vmdk_load_sparse(node, 0, err);
}

static int load_text(struct import_node *node, const struct block_options *options, struct err *err)
{
    uint64_t len = node->files[0]->size;
    if (len > VMDK_DESCRIPTOR_MAX)
        return err_say(err, EINVAL, "its descriptor has %llu bytes", (unsigned long long)len);
    own_free char *text = calloc(1, len + 1);
    if (!text)
        return err_set(err, ENOMEM, "descriptor");
    int r = import_read(node, 0, 0, text, len, err);
    return r < 0 ? r : vmdk_load_descriptor(node, options, text, true, err);
}

static int load(struct import_node *node, const struct block_options *options, struct err *err)
{
    uint8_t h[HEADER_LEN] = {0};
    uint64_t size = node->files[0]->size;
    int r = import_read(node, 0, 0, h, size < sizeof h ? size : sizeof h, err);
    if (r < 0)
        return r;
    if (memcmp(h, VMDK_MAGIC, 4) == 0)
        return load_single(node, options, h, err);
    if (memcmp(h, "COWD", 4) == 0)
        return import_refuse(err, "a vmfsSparse extent");
    if (strncmp((const char *)h, "# Disk DescriptorFile", 21) == 0)
        return load_text(node, options, err);
    return err_say(err, EINVAL, "it has neither a vmdk header nor a descriptor");
}

static int vmdk_open(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    return import_open(options, &block_vmdk, load, ret_node, err);
}

const struct block_class block_vmdk = {
    .name = "vmdk",
    .open = vmdk_open,
    .close = import_close,
    .attach = import_attach,
    .submit = import_submit,
    .status = import_status,
};
