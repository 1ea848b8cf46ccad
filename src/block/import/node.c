/* The node of all readers: a request goes from extent to extent and block to block, in a fiber. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "base/own.h"
#include "block/import/import.h"

#define FIBERS_MAX 16u
#define MARKER_LEN 12u /* vmdk: sector of the disk, 8 bytes; length of what follows, 4 */

/* A part of the disk that lies in one piece. */
struct piece {
    const struct import_extent *extent;
    bool zero;
    uint64_t at;   /* in the file; packed: the marker's */
    uint64_t skip; /* packed: bytes of the block before it */
    uint64_t len;
};

static struct import_node *import_of(struct block_node *node)
{
    return (struct import_node *)(void *)node;
}

/* ---- mapping ---- */

static const struct import_extent *find_extent(const struct import_node *node, uint64_t offset)
{
    unsigned low = 0, high = node->extent_count;
    while (high - low > 1) {
        unsigned middle = low + (high - low) / 2;
        if (node->extents[middle].start <= offset)
            low = middle;
        else
            high = middle;
    }
    return &node->extents[low];
}

static struct piece find_block(const struct import_extent *e, uint64_t inside)
{
    uint32_t entry = e->table[inside / e->block_size];
    uint64_t skip = inside % e->block_size, at = e->base + (uint64_t)(entry - 1) * e->unit;
    return (struct piece){.extent = e, .zero = !entry, .at = e->packed ? at : at + skip, .skip = skip, .len = e->block_size - skip};
}

static bool continues(const struct piece *piece, const struct piece *next)
{
    return piece->zero ? next->zero : !next->zero && !piece->extent->packed && next->at == piece->at + piece->len;
}

/* What lies at `offset`, up to `len` bytes of it. */
static struct piece find_piece(const struct import_node *node, uint64_t offset, uint64_t len)
{
    const struct import_extent *e = find_extent(node, offset);
    uint64_t inside = offset - e->start;
    struct piece piece = {.extent = e, .zero = e->zero, .at = e->base + inside, .len = e->len - inside};
    if (len > piece.len)
        len = piece.len;
    if (e->table) {
        piece = find_block(e, inside);
        while (piece.len < len) {
            struct piece next = find_block(e, inside + piece.len);
            if (!continues(&piece, &next))
                break;
            piece.len += next.len;
        }
    }
    if (piece.len > len)
        piece.len = len;
    return piece;
}

/* ---- reading; in a fiber ---- */

/* Files read as zeroes behind their end, which here means that something is missing. */
static bool inside(const struct block_node *file, uint64_t offset, uint64_t len)
{
    return offset <= file->size && len <= file->size - offset;
}

static int read_file(const struct import_node *node, const struct piece *piece, struct iovec *iov, unsigned count)
{
    struct block_node *file = node->files[piece->extent->file];
    struct block_request req = {.op = BLOCK_READ, .offset = piece->at, .len = piece->len, .iov = iov, .iov_count = count};
    return inside(file, piece->at, piece->len) ? block_do_request(file, &req) : -EIO;
}

static int inflate_block(const uint8_t *packed, size_t packed_len, uint8_t *block, size_t len)
{
    uLongf got = len;
    int r = uncompress(block, &got, packed, packed_len);
    memset(block + got, 0, len - got);
    return r == Z_OK ? 0 : -EIO;
}

static int unpack(struct import_node *node, const struct piece *piece, uint8_t *block)
{
    const struct import_extent *e = piece->extent;
    struct block_node *file = node->files[e->file];
    uint8_t marker[MARKER_LEN];
    int r = inside(file, piece->at, MARKER_LEN) ? block_do(file, BLOCK_READ, piece->at, marker, MARKER_LEN) : -EIO;
    uint32_t len = load_le32(marker + 8);
    if (r == 0 && (!len || len > e->block_size + e->block_size / 2 + 64 || /* what does not get shorter grows a little */
                   !inside(file, piece->at + MARKER_LEN, len)))
        r = -EIO;
    own_free uint8_t *packed = r == 0 ? malloc(len) : NULL;
    if (r == 0 && !packed)
        r = -ENOMEM;
    if (r == 0)
        r = block_do(file, BLOCK_READ, piece->at + MARKER_LEN, packed, len);
    return r < 0 ? r : inflate_block(packed, len, block, e->block_size);
}

/* The last block is kept: reads go on in it as a rule. */
static int read_packed(struct import_node *node, const struct piece *piece, const struct block_request *req)
{
    const struct import_extent *e = piece->extent;
    if (!node->unpacked || node->unpacked_at != piece->at || node->unpacked_file != e->file) {
        uint8_t *block = malloc(e->block_size);
        int r = block ? unpack(node, piece, block) : -ENOMEM;
        if (r < 0) {
            free(block);
            return r;
        }
        free(node->unpacked);
        node->unpacked = block;
        node->unpacked_at = piece->at;
        node->unpacked_file = e->file;
    }
    iov_write(req->iov, req->iov_count, req->progress, node->unpacked + piece->skip, piece->len);
    return 0;
}

static int read_all(struct import_node *node, struct block_request *req)
{
    own_free struct iovec *iov = malloc((req->iov_count ? req->iov_count : 1) * sizeof *iov);
    int r = iov ? 0 : -ENOMEM;
    while (r == 0 && req->progress < req->len) {
        struct piece piece = find_piece(node, req->offset + req->progress, req->len - req->progress);
        if (piece.zero)
            iov_zero(req->iov, req->iov_count, req->progress, piece.len);
        else if (piece.extent->packed)
            r = read_packed(node, &piece, req);
        else
            r = read_file(node, &piece, iov, iov_slice(req->iov, req->iov_count, req->progress, piece.len, iov));
        req->progress += piece.len;
    }
    return r;
}

static void serve(void *arg)
{
    struct block_request *req = arg;
    struct import_node *node = import_of(req->node);
    while (req) {
        int r = read_all(node, req);
        struct block_request *next = node->backlog;
        if (next && !(node->backlog = next->next))
            node->backlog_end = &node->backlog;
        req->done(req, r);
        req = next;
    }
    node->fibers--;
}

void import_submit(struct block_node *block, struct block_request *req)
{
    struct import_node *node = import_of(block);
    req->progress = 0;
    if (req->op != BLOCK_READ) {
        req->done(req, req->op == BLOCK_FLUSH ? 0 : -EROFS);
    } else if (node->fibers == FIBERS_MAX) {
        req->next = NULL;
        *node->backlog_end = req;
        node->backlog_end = &req->next;
    } else {
        node->fibers++;
        if (fiber_start(&node->pool, serve, req) < 0) {
            node->fibers--;
            req->done(req, -ENOMEM);
        }
    }
}

int import_status(struct block_node *block, uint64_t offset, uint64_t len, struct block_extent *ret_extent)
{
    struct import_node *node = import_of(block);
    struct piece piece = find_piece(node, offset, len);
    struct block_extent extent = {.len = piece.len, .present = true, .zero = piece.zero, .name = block->name};
    if (!piece.zero) {
        extent.data = true;
        extent.compressed = piece.extent->packed;
        extent.has_offset = !piece.extent->packed;
        extent.offset = extent.has_offset ? piece.at : 0;
        extent.name = node->files[piece.extent->file]->name;
    }
    *ret_extent = extent;
    return 0;
}

/* ---- opening and closing ---- */

int import_attach(struct block_node *block, struct block_ring *ring, struct err *err)
{
    struct import_node *node = import_of(block);
    int r = 0;
    for (unsigned i = 0; r == 0 && i < node->file_count; i++)
        r = block_attach(node->files[i], ring, err);
    return r;
}

void import_close(struct block_node *block)
{
    struct import_node *node = import_of(block);
    for (unsigned i = 0; i < node->file_count; i++)
        block_close(node->files[i]);
    for (unsigned i = 0; i < node->extent_count; i++)
        free(node->extents[i].table);
    fiber_pool_drain(&node->pool);
    free(node->extents);
    free(node->unpacked);
    free(block->name);
    free(node);
}

static int build(struct import_node *node, const struct block_options *o, int fd,
                 int (*load)(struct import_node *node, const struct block_options *options, struct err *err), struct err *err)
{
    struct block_node *block = &node->node;
    if (!block->name)
        return err_set(err, ENOMEM, "disk");
    if (!o->read_only)
        return err_say(err, EROFS, "%s images are only read; convert it: polder-img convert -f %s -O qcow2", block->class->name,
                       block->class->name);
    int r = import_add_file(node, o->path, fd, err);
    if (r == 0)
        r = load(node, o, err);
    if (r == 0 && !block->size)
        r = err_say(err, EINVAL, "it holds an empty disk");
    return r;
}

int import_open(const struct block_options *options, const struct block_class *class,
                int (*load)(struct import_node *node, const struct block_options *options, struct err *err),
                struct block_node **ret_node, struct err *err)
{
    int fd = options->fd >= 0 ? fcntl(options->fd, F_DUPFD_CLOEXEC, 0) : -1; /* should this fail, the caller keeps its own */
    struct import_node *node = calloc(1, sizeof *node);
    if (!node || (options->fd >= 0 && fd < 0)) {
        free(node);
        return err_set(err, ENOMEM, "disk");
    }
    node->node = (struct block_node){.class = class,
                                     .block_size = BLOCK_SECTOR_SIZE,
                                     .physical_block_size = 4096,
                                     .memory_alignment = 1,
                                     .discard_alignment = 4096,
                                     .read_only = true,
                                     .name = strdup(options->path ? options->path : "fd")};
    node->backlog_end = &node->backlog;
    int r = build(node, options, fd, load, err);
    if (r < 0) {
        err_ctx(err, "disk '%s'", options->path ? options->path : "fd");
        if (!node->file_count && fd >= 0)
            close(fd);
        import_close(&node->node);
        return r;
    }
    if (options->fd >= 0)
        close(options->fd);
    *ret_node = &node->node;
    return 0;
}

/* ---- for readers ---- */

int import_add_converter(struct err *err)
{
    char what[ERR_MESSAGE_SIZE];
    if (!err)
        return -ENOTSUP;
    memcpy(what, err->message, sizeof what);
    return err_say(err, ENOTSUP, "%.180s is not read; convert it with qemu-img convert", what);
}

int import_add_file(struct import_node *node, const char *path, int fd, struct err *err)
{
    struct block_options options = {.path = path, .fd = fd, .read_only = true, .below = true};
    if (node->file_count == IMPORT_FILES_MAX)
        return err_say(err, EINVAL, "it has more than %u files", IMPORT_FILES_MAX);
    int r = block_open(&options, &node->files[node->file_count], err);
    if (r == 0)
        node->file_count++;
    return r;
}

int import_read(struct import_node *node, unsigned file, uint64_t offset, void *buf, uint64_t len, struct err *err)
{
    struct block_node *from = node->files[file];
    if (offset > from->size || len > from->size - offset)
        return err_say(err, EINVAL, "it is cut off: %llu bytes at %llu are not there", (unsigned long long)len,
                       (unsigned long long)offset);
    return block_read_alone(from, offset, buf, len, err);
}

int import_new_table(struct import_node *node, uint64_t entries, uint32_t **ret_table, struct err *err)
{
    uint64_t bytes = entries * sizeof(uint32_t);
    if (!entries || entries > IMPORT_TABLE_BYTES_MAX || node->table_bytes + bytes > IMPORT_TABLE_BYTES_MAX)
        return err_say(err, EFBIG, "its tables have %llu entries, too many for any disk up to 4 TiB", (unsigned long long)entries);
    *ret_table = calloc(entries, sizeof(uint32_t));
    if (!*ret_table)
        return err_set(err, ENOMEM, "block table");
    node->table_bytes += bytes;
    return 0;
}

int import_add_extent(struct import_node *node, struct import_extent extent, struct err *err)
{
    struct import_extent *list = NULL;
    int r = 0;
    if (!extent.len || extent.len % BLOCK_SECTOR_SIZE || extent.len > INT64_MAX - node->node.size)
        r = err_say(err, EINVAL, "a part of its disk has %llu bytes", (unsigned long long)extent.len);
    else if (node->extent_count >= 2 * IMPORT_FILES_MAX)
        r = err_say(err, EINVAL, "it has more than %u parts", 2 * IMPORT_FILES_MAX);
    else if (!(list = realloc(node->extents, (node->extent_count + 1) * sizeof *list)))
        r = err_set(err, ENOMEM, "extents");
    if (r < 0) {
        free(extent.table);
        return r;
    }
    extent.start = node->node.size;
    node->node.size += extent.len;
    node->extents = list;
    list[node->extent_count++] = extent;
    return 0;
}
