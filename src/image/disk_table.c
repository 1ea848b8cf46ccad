/* Partition tables. Sectors are of 512 bytes, as virtio disks have. */
#include "image/disk_table.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"

#define SECTOR 512u
#define GPT_ENTRY_MAX 4096u
#define MBR_PROTECTIVE 0xee

static int read_at(int fd, uint64_t sector, uint8_t *bytes, size_t len, struct err *err)
{
    ssize_t n = sector > INT64_MAX / SECTOR ? 0 : pread(fd, bytes, len, (off_t)(sector * SECTOR));
    if (n < 0)
        return err_set(err, errno, "read the partition table");
    return n == (ssize_t)len ? 0 : err_say(err, EINVAL, "the partition table leads beyond the end of the disk");
}

static void add(struct disk_table *table, uint64_t disk_sectors, unsigned number, uint64_t first, uint64_t count,
                const char *uuid)
{
    if (table->count == DISK_PARTITIONS_MAX || !first || !count || first >= disk_sectors || count > disk_sectors - first)
        return;
    struct disk_partition *partition = &table->partitions[table->count++];
    *partition = (struct disk_partition){number, first * SECTOR, count * SECTOR, ""};
    snprintf(partition->uuid, sizeof partition->uuid, "%s", uuid);
}

/* ---- GPT ---- */

/* The first three fields are little-endian numbers. */
static void format_guid(const uint8_t *g, char ret_text[static 40])
{
    snprintf(ret_text, 40, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", load_le32(g), load_le16(g + 4), load_le16(g + 6),
             g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}

static int read_gpt(int fd, uint64_t disk_sectors, struct disk_table *table, struct err *err)
{
    static const uint8_t unused[16];
    uint8_t header[SECTOR], entry[128];
    int r = read_at(fd, 1, header, sizeof header, err);
    if (r < 0)
        return r;
    uint64_t first = load_le64(header + 72);
    uint32_t count = load_le32(header + 80), size = load_le32(header + 84);
    if (memcmp(header, "EFI PART", 8) != 0 || size < sizeof entry || size > GPT_ENTRY_MAX || size % 8 || first > disk_sectors)
        return err_say(err, EINVAL, "the disk's GPT is damaged");
    for (unsigned i = 0; i < count && i < DISK_PARTITIONS_MAX; i++) {
        char uuid[40];
        ssize_t n = pread(fd, entry, sizeof entry, (off_t)(first * SECTOR + (uint64_t)i * size));
        if (n != sizeof entry)
            return err_say(err, EINVAL, "the disk's GPT leads beyond the end of the disk");
        uint64_t begin = load_le64(entry + 32), end = load_le64(entry + 40);
        format_guid(entry + 16, uuid);
        if (memcmp(entry, unused, sizeof unused) != 0 && end >= begin)
            add(table, disk_sectors, i + 1, begin, end - begin + 1, uuid);
    }
    return 0;
}

/* ---- MBR ---- */

static bool is_extended(uint8_t kind)
{
    return kind == 0x05 || kind == 0x0f || kind == 0x85;
}

static void mbr_uuid(uint32_t disk, unsigned number, char ret_text[static 40])
{
    snprintf(ret_text, 40, "%08x-%02x", disk, number);
}

/* A chain of tables, each with one partition and the next table; it is left where it is broken, or does not end. */
static int read_logical(int fd, uint64_t disk_sectors, uint64_t extended, uint32_t disk, struct disk_table *table,
                        struct err *err)
{
    uint8_t sector[SECTOR];
    uint64_t at = extended;
    for (unsigned number = 5; number < DISK_PARTITIONS_MAX; number++) {
        char uuid[40];
        int r = read_at(fd, at, sector, sizeof sector, err);
        if (r < 0)
            return r;
        if (load_le16(sector + 510) != 0xaa55)
            return 0;
        const uint8_t *own = sector + 446, *next = own + 16;
        mbr_uuid(disk, number, uuid);
        add(table, disk_sectors, number, at + load_le32(own + 8), load_le32(own + 12), uuid);
        if (!is_extended(next[4]) || !load_le32(next + 8))
            return 0;
        at = extended + load_le32(next + 8);
    }
    return 0;
}

static int read_mbr(int fd, const uint8_t *mbr, uint64_t disk_sectors, struct disk_table *table, struct err *err)
{
    uint32_t disk = load_le32(mbr + 440);
    for (unsigned i = 0; i < 4; i++) {
        const uint8_t *entry = mbr + 446 + 16 * (size_t)i;
        char uuid[40];
        mbr_uuid(disk, i + 1, uuid);
        int r = 0;
        if (is_extended(entry[4]))
            r = read_logical(fd, disk_sectors, load_le32(entry + 8), disk, table, err);
        else if (entry[4])
            add(table, disk_sectors, i + 1, load_le32(entry + 8), load_le32(entry + 12), uuid);
        if (r < 0)
            return r;
    }
    return 0;
}

/* A file system without a table may hold the mark as well (a boot sector of its own): its entries' status bytes then are what
 * none has. */
static bool is_mbr(const uint8_t *mbr)
{
    bool any = false;
    for (unsigned i = 0; i < 4; i++) {
        const uint8_t *entry = mbr + 446 + 16 * (size_t)i;
        if (entry[0] & 0x7f)
            return false;
        any |= entry[4] != 0;
    }
    return any && load_le16(mbr + 510) == 0xaa55;
}

int disk_table_read(int fd, struct disk_table *ret_table, struct err *err)
{
    uint8_t mbr[SECTOR];
    struct stat st;
    struct disk_table table = {.count = 0};
    if (fstat(fd, &st) < 0)
        return err_set(err, errno, "read the partition table");
    uint64_t sectors = (uint64_t)st.st_size / SECTOR;
    int r = read_at(fd, 0, mbr, sizeof mbr, err);
    if (r == 0 && !is_mbr(mbr))
        table = (struct disk_table){.partitions = {{.size_bytes = sectors * SECTOR}}, .count = 1};
    else if (r == 0 && mbr[446 + 4] == MBR_PROTECTIVE)
        r = read_gpt(fd, sectors, &table, err);
    else if (r == 0)
        r = read_mbr(fd, mbr, sectors, &table, err);
    if (r == 0)
        *ret_table = table;
    return r;
}
