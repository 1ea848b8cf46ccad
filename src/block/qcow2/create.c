/* New images: header, refcount table, refcount blocks and an empty L1 table, one after the other. */
#include "block/qcow2/qcow2.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/own.h"
#include "block/qcow2/qcow2_impl.h"

struct layout {
    unsigned cluster_bits, refcount_order;
    uint64_t size, l1_entries, l1_clusters, table_clusters, blocks;
    uint64_t luks_len, luks_clusters;
};

static const struct {
    uint8_t type, bit;
    char name[FEATURE_NAME_LEN];
} features[] = {{0, 0, "dirty bit"},           {0, 1, "corrupt bit"},        {0, 2, "external data file"},
                {0, 3, "compression type"},    {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
                {2, 0, "bitmaps"},             {2, 1, "raw external data"}};

/* ---- checking ---- */

static int check_backing(const struct qcow2_create *c, struct err *err)
{
    if (c->backing && (strlen(c->backing) > NAME_MAX_LEN || !*c->backing))
        return err_say(err, EINVAL, "a backing file's name has 1 to %u bytes", NAME_MAX_LEN);
    if (c->backing && !c->backing_format)
        return err_say(err, EINVAL, "state the backing file's format: -F raw or -F qcow2");
    if (c->encrypt && c->data_file_raw)
        return err_say(err, EINVAL, "a raw data file cannot be encrypted");
    if (c->data_file_raw && (!c->data_file || c->backing))
        return err_say(err, EINVAL, "data_file_raw needs a data file and excludes a backing file");
    return 0;
}

static int check(const struct qcow2_create *c, struct layout *l, struct err *err)
{
    uint32_t size = c->cluster_size, bits = c->refcount_bits;
    if (size < 512 || size > 2u << 20 || size & (size - 1))
        return err_say(err, EINVAL, "cluster_size must be a power of two from 512 to 2M");
    if (!bits || bits > 64 || bits & (bits - 1))
        return err_say(err, EINVAL, "refcount_bits must be 1, 2, 4, 8, 16, 32 or 64");
    if (c->version != 2 && c->version != 3)
        return err_say(err, EINVAL, "compat must be 0.10 (version 2) or 1.1 (version 3)");
    if (c->version == 2 && (bits != 16 || c->extended_l2 || c->lazy_refcounts || c->data_file || c->zstd))
        return err_say(err, EINVAL, "refcount_bits, extended_l2, lazy_refcounts, data_file and zstd need compat=1.1");
    if (c->extended_l2 && size < 16384)
        return err_say(err, EINVAL, "extended_l2 needs a cluster_size of 16k or more");
    l->cluster_bits = (unsigned)__builtin_ctz(size);
    l->refcount_order = (unsigned)__builtin_ctz(bits);
    l->size = (c->size + BLOCK_SECTOR_SIZE - 1) & ~(uint64_t)(BLOCK_SECTOR_SIZE - 1);
    unsigned span_bits = l->cluster_bits * 2 - (c->extended_l2 ? 4 : 3);
    l->l1_entries = c->size > INT64_MAX ? UINT64_MAX : (l->size >> span_bits) + ((l->size & ((UINT64_C(1) << span_bits) - 1)) != 0);
    if (l->l1_entries > L1_BYTES_MAX / 8)
        return err_say(err, EFBIG, "a disk of %llu bytes is too large for clusters of %u bytes; take a larger cluster_size",
                       (unsigned long long)c->size, size);
    return check_backing(c, err);
}

/* ---- writing ---- */

static uint64_t luks_offset(const struct layout *l)
{
    return (1 + l->table_clusters + l->blocks + l->l1_clusters) << l->cluster_bits;
}

/* Clusters of the whole file. */
static uint64_t count_clusters(const struct layout *l)
{
    return 1 + l->table_clusters + l->blocks + l->l1_clusters + l->luks_clusters;
}

static uint8_t *put_extension(uint8_t *at, uint32_t type, const void *data, size_t len)
{
    store_be32(at, type);
    store_be32(at + 4, (uint32_t)len);
    memcpy(at + 8, data, len);
    return at + 8 + ((len + 7) & ~(size_t)7);
}

static int put_extensions(const struct qcow2_create *c, const struct layout *l, uint8_t *header, uint32_t header_len, struct err *err)
{
    size_t names_len = sizeof features / sizeof *features * 48, backing_len = c->backing ? strlen(c->backing) : 0;
    size_t need = header_len + 8 + backing_len + (c->backing ? 8 + 8 : 0) + (c->data_file ? 16 + strlen(c->data_file) : 0) +
                  (c->encrypt ? 8 + CRYPT_POINTER_LEN : 0);
    if (need > c->cluster_size)
        return err_say(err, EINVAL, "the names do not fit into a cluster; take a larger cluster_size");
    uint8_t *at = header + header_len;
    if (c->backing)
        at = put_extension(at, EXTENSION_BACKING_FORMAT, c->backing_format, strlen(c->backing_format));
    if (c->data_file)
        at = put_extension(at, EXTENSION_DATA_FILE, c->data_file, strlen(c->data_file));
    if (c->encrypt) {
        uint8_t pointer[CRYPT_POINTER_LEN];
        store_be64(pointer, luks_offset(l));
        store_be64(pointer + 8, l->luks_len);
        at = put_extension(at, EXTENSION_CRYPT, pointer, sizeof pointer);
    }
    if (c->version >= 3 && need + 8 + names_len <= c->cluster_size)
        at = put_extension(at, EXTENSION_FEATURE_NAMES, features, names_len);
    at += 8; /* the end: zeroes */
    if (c->backing) {
        memcpy(at, c->backing, backing_len);
        store_be64(header + H_BACKING_OFFSET, (uint64_t)(at - header));
        store_be32(header + H_BACKING_LEN, (uint32_t)backing_len);
    }
    return 0;
}

static int fill_header(const struct qcow2_create *c, const struct layout *l, uint8_t *h, struct err *err)
{
    store_be32(h, QCOW2_MAGIC);
    store_be32(h + H_VERSION, c->version);
    store_be32(h + H_CLUSTER_BITS, l->cluster_bits);
    store_be32(h + H_CRYPT, c->encrypt ? CRYPT_LUKS : CRYPT_NONE);
    store_be64(h + H_SIZE, l->size);
    store_be32(h + H_L1_SIZE, (uint32_t)l->l1_entries);
    store_be64(h + H_L1_OFFSET, (1 + l->table_clusters + l->blocks) << l->cluster_bits);
    store_be64(h + H_REFTABLE_OFFSET, UINT64_C(1) << l->cluster_bits);
    store_be32(h + H_REFTABLE_CLUSTERS, (uint32_t)l->table_clusters);
    if (c->version == 2)
        return put_extensions(c, l, h, QCOW2_V2_HEADER_LEN, err);
    store_be64(h + H_INCOMPATIBLE, (c->data_file ? INCOMPATIBLE_DATA_FILE : 0) | (c->zstd ? INCOMPATIBLE_COMPRESSION : 0) |
                                       (c->extended_l2 ? INCOMPATIBLE_EXTENDED_L2 : 0));
    store_be64(h + H_COMPATIBLE, c->lazy_refcounts ? COMPATIBLE_LAZY_REFCOUNTS : 0);
    store_be64(h + H_AUTOCLEAR, c->data_file_raw ? AUTOCLEAR_DATA_RAW : 0);
    store_be32(h + H_REFCOUNT_ORDER, l->refcount_order);
    store_be32(h + H_HEADER_LEN, QCOW2_HEADER_LEN);
    h[H_COMPRESSION] = c->zstd ? COMPRESSION_ZSTD : COMPRESSION_ZLIB;
    return put_extensions(c, l, h, QCOW2_HEADER_LEN, err);
}

/* How many clusters count all of this, themselves included. */
static void plan_layout(struct layout *l)
{
    unsigned block_bits = l->cluster_bits + 3 - l->refcount_order;
    uint64_t mask = (UINT64_C(1) << l->cluster_bits) - 1, before;
    l->l1_clusters = (l->l1_entries * 8 + mask) >> l->cluster_bits;
    l->luks_clusters = (l->luks_len + mask) >> l->cluster_bits;
    l->table_clusters = l->blocks = 1;
    do {
        before = l->table_clusters + l->blocks;
        uint64_t total = count_clusters(l);
        l->blocks = (total >> block_bits) + ((total & ((UINT64_C(1) << block_bits) - 1)) != 0);
        l->table_clusters = (l->blocks * 8 + mask) >> l->cluster_bits;
    } while (l->table_clusters + l->blocks != before);
}

static int write_all(int fd, const void *data, size_t len, uint64_t offset)
{
    while (len) {
        ssize_t n = pwrite(fd, data, len, (off_t)offset);
        if (n <= 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            data = (const uint8_t *)data + n;
            offset += (uint64_t)n;
            len -= (size_t)n;
        }
    }
    return 0;
}

static int write_counts(int fd, const struct layout *l)
{
    uint64_t size = UINT64_C(1) << l->cluster_bits, total = count_clusters(l);
    uint64_t per_block = UINT64_C(1) << (l->cluster_bits + 3 - l->refcount_order);
    own_free uint8_t *table = calloc(l->table_clusters, size), *block = malloc(size);
    if (!table || !block)
        return -ENOMEM;
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < l->blocks; i++) {
        uint64_t offset = (1 + l->table_clusters + i) << l->cluster_bits;
        store_be64(table + i * 8, offset);
        memset(block, 0, size);
        for (uint64_t j = 0; j < per_block && i * per_block + j < total; j++)
            refcount_store(block, l->refcount_order, (uint32_t)j, 1);
        r = write_all(fd, block, size, offset);
    }
    return r < 0 ? r : write_all(fd, table, l->table_clusters << l->cluster_bits, size);
}

static int copy_luks(int fd, int luks, const struct layout *l)
{
    own_free uint8_t *header = malloc(l->luks_len);
    if (!header)
        return -ENOMEM;
    if (pread(luks, header, l->luks_len, 0) != (ssize_t)l->luks_len)
        return -EIO;
    return write_all(fd, header, l->luks_len, luks_offset(l));
}

/* The header last: an image that was not finished is none. */
static int write_image(int fd, int luks, const struct qcow2_create *c, const struct layout *l, struct err *err)
{
    uint64_t size = UINT64_C(1) << l->cluster_bits, total = count_clusters(l);
    own_free uint8_t *header = calloc(1, size);
    if (!header)
        return err_set(err, ENOMEM, "'%s'", c->path);
    int r = fill_header(c, l, header, err);
    if (r < 0)
        return r;
    if (ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)(total << l->cluster_bits)) < 0)
        return err_set(err, errno, "'%s'", c->path);
    r = write_counts(fd, l);
    if (r == 0 && c->encrypt)
        r = copy_luks(fd, luks, l);
    if (r == 0 && fdatasync(fd) < 0)
        r = -errno;
    if (r == 0)
        r = write_all(fd, header, size, 0);
    if (r == 0 && fdatasync(fd) < 0)
        r = -errno;
    return r < 0 ? err_set(err, -r, "'%s'", c->path) : 0;
}

static int create_data_file(const struct qcow2_create *c, const struct layout *l, struct err *err)
{
    const char *slash = strrchr(c->path, '/');
    own_free char *path = NULL;
    if (c->data_file[0] == '/' || !slash)
        path = strdup(c->data_file);
    else if (asprintf(&path, "%.*s/%s", (int)(slash - c->path), c->path, c->data_file) < 0)
        path = NULL;
    if (!path)
        return err_set(err, ENOMEM, "'%s'", c->data_file);
    own_fd int fd = block_open_new(path, err);
    if (fd < 0)
        return fd;
    if (ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)l->size) < 0)
        return err_set(err, errno, "'%s'", path);
    return 0;
}

static int format_luks(const struct qcow2_create *c, int *ret_fd, uint64_t *ret_len, struct err *err)
{
    struct luks_create luks = luks_create_default;
    luks.version = 1; /* the only one that qcow2 has */
    luks.iterations = c->luks_iterations;
    return luks_format(&luks, c->key, ret_fd, ret_len, err);
}

int qcow2_create(const struct qcow2_create *create, struct err *err)
{
    struct layout layout = {0};
    int r = check(create, &layout, err);
    if (r < 0)
        return r;
    own_fd int luks = -1;
    if (create->encrypt)
        r = format_luks(create, &luks, &layout.luks_len, err);
    if (r < 0)
        return r;
    plan_layout(&layout);
    own_fd int fd = block_open_new(create->path, err);
    if (fd < 0)
        return fd;
    if (create->data_file)
        r = create_data_file(create, &layout, err);
    return r < 0 ? r : write_image(fd, luks, create, &layout, err);
}
