/* VHDX: headers, regions and metadata, everything that has a checksum or a GUID. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/own.h"
#include "block/import/vhdx_impl.h"

#define KIB 1024u
#define MIB (1024u * KIB)
#define HEADER_LEN (4 * KIB)
#define REGIONS_LEN (64 * KIB)
#define METADATA_LEN (64 * KIB)
#define ENTRIES_MAX 2047u
#define ENTRY_LEN 32u
#define LOG_SECTOR (4 * KIB)
#define LOG_MAX (UINT32_C(256) * MIB)
#define REGION_MAX (UINT32_C(1024) * MIB)
#define DISK_MAX (UINT64_C(64) << 40)
/* in a header */
#define H_CHECKSUM 4
#define H_SEQUENCE 8
#define H_LOG_GUID 48
#define H_LOG_VERSION 64
#define H_VERSION 66
#define H_LOG_LEN 68
#define H_LOG_OFFSET 72
#define LOG_ENTRY_GUID 32

/* GUIDs as stored: the first three parts are little-endian. */
static const uint8_t region_table[16] = {0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08};
static const uint8_t region_metadata[16] = {0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e};
static const uint8_t item_parameters[16] = {0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b};
static const uint8_t item_size[16] = {0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8};
static const uint8_t item_sector[16] = {0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f};

/* CRC-32C (Castagnoli), with the checksum's own field as zeroes. */
static bool crc_fits(const uint8_t *data, size_t len)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < len; i++) {
        crc ^= i >= H_CHECKSUM && i < H_CHECKSUM + 4 ? 0 : data[i];
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return load_le32(data + H_CHECKSUM) == ~crc;
}

/* Copies a sound structure from the better of two places; false when neither is. */
static bool read_copy(struct import_node *node, uint64_t offset, uint8_t *data, uint32_t len, const char signature[4])
{
    return import_read(node, 0, offset, data, len, NULL) == 0 && memcmp(data, signature, 4) == 0 && crc_fits(data, len);
}

static int check_log(struct import_node *node, const uint8_t *h, struct err *err)
{
    static const uint8_t none[16];
    uint32_t len = load_le32(h + H_LOG_LEN);
    uint64_t offset = load_le64(h + H_LOG_OFFSET);
    if (memcmp(h + H_LOG_GUID, none, sizeof none) == 0)
        return 0;
    if (len > LOG_MAX)
        return err_say(err, EINVAL, "its log has %u bytes", len);
    for (uint32_t at = 0; at < len; at += LOG_SECTOR) {
        uint8_t sector[64];
        int r = import_read(node, 0, offset + at, sector, sizeof sector, err);
        if (r < 0)
            return r;
        if (memcmp(sector, "loge", 4) == 0 && memcmp(sector + LOG_ENTRY_GUID, h + H_LOG_GUID, 16) == 0)
            return import_refuse(err, "it was not closed, and a vhdx log that must be replayed first (qemu-img check -r all)");
    }
    return 0;
}

static int read_header(struct import_node *node, struct err *err)
{
    own_free uint8_t *data = malloc(2 * (size_t)HEADER_LEN);
    if (!data)
        return err_set(err, ENOMEM, "header");
    uint8_t *a = data, *b = data + HEADER_LEN;
    if (import_read(node, 0, 0, data, 8, NULL) < 0 || memcmp(data, "vhdxfile", 8) != 0)
        return err_say(err, EINVAL, "it has no vhdx header");
    bool has_a = read_copy(node, 64 * KIB, a, HEADER_LEN, "head"), has_b = read_copy(node, 128 * KIB, b, HEADER_LEN, "head");
    if (!has_a && !has_b)
        return err_say(err, EINVAL, "its headers are damaged");
    const uint8_t *h = has_a && (!has_b || load_le64(a + H_SEQUENCE) >= load_le64(b + H_SEQUENCE)) ? a : b;
    if (load_le16(h + H_VERSION) != 1 || load_le16(h + H_LOG_VERSION) != 0)
        return import_refuse(err, "vhdx version %u", load_le16(h + H_VERSION));
    return check_log(node, h, err);
}

int vhdx_read_regions(struct import_node *node, struct vhdx_layout *layout, struct err *err)
{
    int r = read_header(node, err);
    if (r < 0)
        return r;
    own_free uint8_t *data = malloc(REGIONS_LEN);
    if (!data)
        return err_set(err, ENOMEM, "region table");
    if (!read_copy(node, 192 * KIB, data, REGIONS_LEN, "regi") && !read_copy(node, 256 * KIB, data, REGIONS_LEN, "regi"))
        return err_say(err, EINVAL, "its region tables are damaged");
    uint32_t count = load_le32(data + 8);
    for (uint32_t i = 0; i < count && i < ENTRIES_MAX; i++) {
        const uint8_t *entry = data + 16 + (size_t)i * ENTRY_LEN;
        struct vhdx_region region = {load_le64(entry + 16), load_le32(entry + 24)};
        if (region.offset > INT64_MAX || region.len > REGION_MAX)
            return err_say(err, EINVAL, "its region table has impossible places");
        if (memcmp(entry, region_table, 16) == 0)
            layout->table = region;
        else if (memcmp(entry, region_metadata, 16) == 0)
            layout->metadata = region;
        else if (load_le32(entry + 28) & 1)
            return import_refuse(err, "a vhdx image with a region that is not known");
    }
    if (!layout->table.len || layout->metadata.len < METADATA_LEN)
        return err_say(err, EINVAL, "its region table lacks the block table or the metadata");
    return 0;
}

/* A number of `len` bytes that an entry of the metadata table leads to. */
static int read_item(struct import_node *node, const struct vhdx_layout *layout, const uint8_t *entry, uint32_t len, uint64_t *ret_value,
                     struct err *err)
{
    uint8_t value[8] = {0};
    uint32_t offset = load_le32(entry + 16);
    if (load_le32(entry + 20) < len || offset < METADATA_LEN || offset > layout->metadata.len - len)
        return err_say(err, EINVAL, "its metadata lies outside of its region");
    int r = import_read(node, 0, layout->metadata.offset + offset, value, len, err);
    *ret_value = load_le64(value);
    return r;
}

static int take_item(struct import_node *node, struct vhdx_layout *layout, const uint8_t *entry, struct err *err)
{
    uint64_t value = 0;
    int r = 0;
    if (memcmp(entry, item_parameters, 16) == 0) {
        r = read_item(node, layout, entry, 8, &value, err);
        layout->block_size = (uint32_t)value;
        if (r == 0 && value >> 32 & 2)
            r = import_refuse(err, "a differencing vhdx image");
    } else if (memcmp(entry, item_size, 16) == 0) {
        r = read_item(node, layout, entry, 8, &layout->disk_size, err);
    } else if (memcmp(entry, item_sector, 16) == 0) {
        r = read_item(node, layout, entry, 4, &value, err);
        layout->sector_size = (uint32_t)value;
    }
    return r;
}

static int check_layout(const struct vhdx_layout *l, struct err *err)
{
    if (l->block_size < MIB || l->block_size > IMPORT_BLOCK_MAX || l->block_size & (l->block_size - 1))
        return err_say(err, EINVAL, "blocks of %u bytes are impossible", l->block_size);
    if (l->sector_size != 512 && l->sector_size != 4096)
        return err_say(err, EINVAL, "sectors of %u bytes are impossible", l->sector_size);
    if (!l->disk_size || l->disk_size > DISK_MAX || l->disk_size % l->sector_size)
        return err_say(err, EINVAL, "a disk of %llu bytes is impossible", (unsigned long long)l->disk_size);
    return 0;
}

int vhdx_read_metadata(struct import_node *node, struct vhdx_layout *layout, struct err *err)
{
    own_free uint8_t *data = malloc(METADATA_LEN);
    if (!data)
        return err_set(err, ENOMEM, "metadata");
    int r = import_read(node, 0, layout->metadata.offset, data, METADATA_LEN, err);
    if (r == 0 && memcmp(data, "metadata", 8) != 0)
        r = err_say(err, EINVAL, "its metadata table is damaged");
    uint32_t count = r == 0 ? load_le16(data + 10) : 0;
    for (uint32_t i = 0; r == 0 && i < count && i < ENTRIES_MAX; i++)
        r = take_item(node, layout, data + 32 + (size_t)i * ENTRY_LEN, err);
    return r < 0 ? r : check_layout(layout, err);
}
