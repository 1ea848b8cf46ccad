/* Opening and closing: header, tables, the files that the image names. Both do their I/O on a ring of their own, as the
 * ring that will serve the node may not run yet, or no more. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/fdname.h"
#include "base/log.h"
#include "base/own.h"
#include "block/names.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/qcow2_impl.h"
#include "block/qcow2/snapshot_impl.h"

#define FIRST_READ 4096u

static int qcow2_attach(struct block_node *node, struct block_ring *ring, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    node->ring = ring;
    int r = block_attach(q->file, ring, err);
    if (r == 0 && q->data && q->data != q->file)
        r = block_attach(q->data, ring, err);
    if (r == 0 && q->backing)
        r = block_attach(q->backing, ring, err);
    return r;
}

/* ---- loading ---- */

struct loading {
    struct qcow2 *q;
    const char *snapshot; /* NULL: the disk as it is */
    struct err *err;
};

static int read_header(struct qcow2 *q, struct err *err)
{
    uint8_t first[FIRST_READ];
    int r = block_do(q->file, BLOCK_READ, 0, first, sizeof first);
    if (r < 0)
        return err_set(err, -r, "disk '%s'", q->node.name);
    uint32_t bits = load_be32(first + H_CLUSTER_BITS);
    size_t len = bits > 12 && bits <= CLUSTER_BITS_MAX && load_be32(first) == QCOW2_MAGIC ? (size_t)1 << bits : sizeof first;
    uint8_t *start = aligned_alloc(4096, len);
    if (!start)
        return err_set(err, ENOMEM, "disk '%s'", q->node.name);
    r = block_do(q->file, BLOCK_READ, 0, start, len);
    r = r < 0 ? err_set(err, -r, "disk '%s'", q->node.name) : header_parse(q, start, len, q->node.name, err);
    free(start);
    return r;
}

int read_entries(struct qcow2 *q, uint64_t offset, uint32_t count, uint64_t **ret_entries)
{
    uint64_t len = cluster_count(q, (uint64_t)count * 8) << q->cluster_bits;
    uint64_t *entries = aligned_alloc(4096, len ? (len + 4095) & ~(uint64_t)4095 : 4096);
    if (!entries)
        return -ENOMEM;
    int r = len ? block_do(q->file, BLOCK_READ, offset, entries, len) : 0;
    for (uint64_t i = 0; i < len / 8; i++)
        entries[i] = i < count ? be64toh(entries[i]) : 0;
    if (r < 0)
        free(entries);
    else
        *ret_entries = entries;
    return r;
}

static int load(void *arg)
{
    struct loading *loading = arg;
    struct qcow2 *q = loading->q;
    int r = read_header(q, loading->err);
    if (r < 0)
        return r;
    if (q->file->block_size > q->cluster_size || q->file->block_size > FIRST_READ)
        return err_say(loading->err, EINVAL, "disk '%s': clusters of %u bytes are too small for direct I/O here; use the page cache",
                       q->node.name, q->cluster_size);
    r = tables_init(q);
    if (r == 0)
        r = read_entries(q, q->l1_offset, q->l1_size, &q->l1);
    if (r == 0)
        r = read_entries(q, q->reftable_offset, q->reftable_size, &q->reftable);
    if (r == 0)
        r = dirty_bitmaps_load_directory(q);
    if (r == 0 && loading->snapshot)
        return snapshot_view(q, loading->snapshot, loading->err);
    return r < 0 ? err_set(loading->err, -r, "disk '%s'", q->node.name) : 0;
}

/* ---- files that the image names ---- */

static bool same_file(int fd, const char *path)
{
    struct stat a, b;
    return path && fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* The next of the chain that the user gave. */
static int given_open(const struct block_options *o, int *ret_fd, char **ret_path, struct err *err)
{
    const char *name = o->backing[0];
    if (!name)
        return err_say(err, EINVAL, "its chain has more images than were given by backing=");
    own_fd int fd = fdname_open(name, O_RDONLY | (o->direct ? O_DIRECT : 0), 0);
    if (fd < 0 || !(*ret_path = strdup(name)))
        return err_set(err, errno, "backing '%s'", name);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int qcow2_open_base(const struct block_options *o, const char *name, const char *format, struct block_node **ret_node,
                    struct err *err)
{
    own_free char *path = NULL;
    own_fd int fd = -1;
    if (o->depth + 1 >= CHAIN_MAX)
        return err_say(err, ELOOP, "a chain of more than %u images; does one back itself?", CHAIN_MAX);
    int r = o->backing ? given_open(o, &fd, &path, err) : names_open(o, name, true, &fd, &path, err);
    if (r < 0 || same_file(fd, o->base))
        return r;
    r = format ? 0 : block_guess_format(path, &format);
    if (r < 0 && r != -EINVAL)
        return err_set(err, -r, "backing '%s'", path);
    if (r < 0)
        return err_say(err, EINVAL, "it states no format for '%.100s'; do so: qemu-img rebase -u -F FORMAT", path);
    bool raw = strcmp(format, "raw") == 0;
    if (!raw && strcmp(format, "qcow2") != 0 && strcmp(format, "luks") != 0)
        return err_say(err, ENOTSUP, "its backing file has the format '%.20s', which is not supported", format);
    struct block_options below = {.driver = raw ? "file" : format,
                                  .path = path,
                                  .fd = fd,
                                  .read_only = true,
                                  .direct = o->direct,
                                  .below = raw,
                                  .allow_dirs = o->allow_dirs,
                                  .backing = o->backing ? o->backing + 1 : NULL,
                                  .base = o->base,
                                  .key = o->key,
                                  .depth = o->depth + 1};
    r = block_open(&below, ret_node, err);
    if (r == 0)
        TAKE_FD(fd);
    return r;
}

static void set_backing(struct qcow2 *q, struct block_node *backing)
{
    q->backing = backing;
    q->backing_size = (backing->size + q->node.block_size - 1) & ~(uint64_t)(q->node.block_size - 1);
}

static int open_backing(struct qcow2 *q, const struct block_options *o, struct err *err)
{
    struct block_node *backing = NULL;
    int r = qcow2_open_base(o, q->backing_name, q->backing_format, &backing, err);
    q->before_base = r == 0 && !backing;
    if (backing)
        set_backing(q, backing);
    return r;
}

static int open_data(struct qcow2 *q, const struct block_options *o, struct err *err)
{
    own_free char *path = NULL;
    own_fd int fd = -1;
    if (!q->data_name)
        return err_say(err, EINVAL, "its data file has no name");
    int r = names_open(o, q->data_name, o->read_only, &fd, &path, err);
    if (r < 0)
        return r;
    struct block_options data = {
        .path = path, .fd = fd, .read_only = o->read_only, .direct = o->direct, .below = true, .depth = o->depth};
    r = block_open(&data, &q->data, err);
    if (r == 0)
        TAKE_FD(fd);
    return r;
}

static int open_named(struct qcow2 *q, const struct block_options *o, struct err *err)
{
    int r = 0;
    q->data = q->file;
    if (q->external) {
        q->data = NULL;
        r = open_data(q, o, err);
    }
    if (r == 0 && q->backing_name && !o->no_backing)
        r = open_backing(q, o, err);
    else if (r == 0 && o->backing && o->backing[0])
        r = err_say(err, EINVAL, "it has no backing file, and backing=%s was given", o->backing[0]);
    return r < 0 ? err_ctx(err, "disk '%s'", q->node.name) : 0;
}

/* ---- opening ---- */

/* What other writers' features would not survive is marked so. */
static int begin_writing(void *arg)
{
    struct qcow2 *q = arg;
    uint64_t kept = AUTOCLEAR_DATA_RAW | (q->bitmaps.damaged ? 0 : AUTOCLEAR_BITMAPS);
    fiber_lock(&q->lock);
    int r = q->autoclear & ~kept ? header_set_autoclear(q, q->autoclear & kept) : 0;
    if (r == 0)
        r = dirty_bitmaps_begin(q);
    fiber_unlock(&q->lock);
    return r;
}

struct repairing {
    struct qcow2 *q;
    struct qcow2_check check;
};

static int repair_counts(void *arg)
{
    struct repairing *repairing = arg;
    return qcow2_check(&repairing->q->node, QCOW2_REPAIR_ALL, &repairing->check, NULL);
}

/* Lazy refcounts, and a writer that did not end well: the mapping is right, the counts are made anew. */
static int repair_dirty(struct qcow2 *q, struct err *err)
{
    struct repairing repairing = {.q = q};
    int r = block_run_alone(&q->node, repair_counts, &repairing, err);
    if (r < 0)
        return err_set(err, -r, "disk '%s' was not closed: repair", q->node.name);
    if (q->incompatible & INCOMPATIBLE_DIRTY)
        return err_say(err, EIO, "disk '%s' was not closed and is damaged beyond its reference counts; see polder-img check",
                       q->node.name);
    log_debug("disk '%s' was not closed; reference counts repaired", q->node.name);
    return 0;
}

static int check_writable(struct qcow2 *q, struct err *err)
{
    if (q->incompatible & INCOMPATIBLE_CORRUPT)
        return err_say(err, EIO, "disk '%s' is marked as corrupt; repair it: polder-img check -r all", q->node.name);
    int r = q->incompatible & INCOMPATIBLE_DIRTY ? repair_dirty(q, err) : 0;
    if (r < 0)
        return r;
    if (!(q->autoclear & ~(uint64_t)AUTOCLEAR_DATA_RAW))
        return 0;
    r = block_run_alone(&q->node, begin_writing, q, err);
    return r < 0 ? err_set(err, -r, "disk '%s'", q->node.name) : 0;
}

static void fill_node(struct qcow2 *q, const struct block_options *o)
{
    struct block_node *node = &q->node;
    node->block_size = q->file->block_size;
    node->physical_block_size = q->file->physical_block_size;
    node->memory_alignment = q->file->memory_alignment;
    node->discard_alignment = q->cluster_size > 4096 ? q->cluster_size : 4096;
    node->read_only = o->read_only;
    node->can_discard = node->can_write_zeroes = !o->read_only;
    node->size -= node->size % node->block_size;
    q->l1_dirty = q->reftable_dirty = (struct dirty_range){UINT32_MAX, 0};
    q->backlog_end = &q->backlog;
}

static int qcow2_build(struct qcow2 *q, const struct block_options *o, struct err *err)
{
    own_fd int fd = o->fd >= 0 ? fcntl(o->fd, F_DUPFD_CLOEXEC, 0) : -1; /* should this fail, the caller keeps its own */
    struct block_options file = {.path = o->path, .fd = fd, .read_only = o->read_only, .direct = o->direct, .below = true};
    if (o->snapshot && !o->read_only)
        return err_say(err, EINVAL, "snapshots are read-only");
    q->node.name = strdup(o->path ? o->path : "fd");
    if (!q->node.name || (o->fd >= 0 && fd < 0))
        return err_set(err, ENOMEM, "disk");
    int r = block_open(&file, &q->file, err);
    if (r < 0)
        return r;
    TAKE_FD(fd);
    r = block_run_alone(&q->node, load, &(struct loading){.q = q, .snapshot = o->snapshot, .err = err}, err);
    if (r < 0)
        return r;
    fill_node(q, o);
    r = open_named(q, o, err);
    if (r == 0)
        r = encryption_open(q, o, err);
    if (r == 0 && !o->read_only && !o->repair)
        r = check_writable(q, err);
    return r;
}

static void release(struct qcow2 *q)
{
    struct part *part;
    while ((part = q->free_parts)) {
        q->free_parts = part->next_free;
        free(part);
    }
    if (q->cache.buckets)
        tables_free(q);
    fiber_pool_drain(&q->pool);
    dirty_bitmaps_free(q);
    block_close(q->backing);
    if (q->data != q->file)
        block_close(q->data);
    block_close(q->file);
    crypt_cipher_free(q->legacy);
    free(q->unpacked);
    free(q->l1);
    free(q->reftable);
    free(q->free_list);
    free(q->backing_name);
    free(q->backing_format);
    free(q->data_name);
    free(q->node.name);
    free(q);
}

static int qcow2_open(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    struct qcow2 *q = calloc(1, sizeof *q);
    if (!q)
        return err_set(err, ENOMEM, "disk");
    q->node.class = &block_qcow2;
    int r = qcow2_build(q, options, err);
    if (r < 0) {
        release(q);
        return r;
    }
    if (options->fd >= 0)
        close(options->fd);
    *ret_node = &q->node;
    return 0;
}

/* Deferred frees dirty the counts again, once. */
static int write_back(void *arg)
{
    struct qcow2 *q = arg;
    int r = 0;
    fiber_lock(&q->lock);
    for (unsigned i = 0; r == 0 && i < 3 && is_dirty(q); i++)
        r = checkpoint(q);
    if (r == 0 && q->bitmaps.in_use)
        r = dirty_bitmaps_store(q, true);
    fiber_unlock(&q->lock);
    return r;
}

static void set_read_only(struct block_node *node, bool read_only)
{
    node->read_only = read_only;
    node->can_discard = node->can_write_zeroes = !read_only;
}

static int freeze_files(struct qcow2 *q)
{
    int r = q->file->class->freeze(q->file);
    if (r < 0 || !q->external)
        return r;
    r = q->data->class->freeze(q->data);
    if (r < 0)
        (void)q->file->class->thaw(q->file, NULL);
    return r;
}

/* Bitmaps that are no longer marked as in use are so again, or nothing more is written. */
static void go_on_writing(struct qcow2 *q)
{
    fiber_lock(&q->lock);
    int r = q->failed || q->bitmaps.in_use ? 0 : dirty_bitmaps_begin(q);
    if (r < 0)
        q->failed = r;
    fiber_unlock(&q->lock);
}

static int qcow2_freeze(struct block_node *node)
{
    struct qcow2 *q = qcow2_of(node);
    int r = q->failed ? q->failed : write_back(q);
    if (r == 0)
        r = freeze_files(q);
    if (r < 0)
        go_on_writing(q);
    else
        set_read_only(node, true);
    return r;
}

static int qcow2_thaw(struct block_node *node, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    if (q->incompatible & (INCOMPATIBLE_CORRUPT | INCOMPATIBLE_DIRTY))
        return err_say(err, EIO, "disk '%s' was not closed or is damaged; repair it first: polder-img check -r all", node->name);
    int r = q->file->class->thaw(q->file, err);
    if (r == 0 && q->external)
        r = q->data->class->thaw(q->data, err);
    if (r < 0)
        return r;
    set_read_only(node, false);
    r = q->autoclear & ~(uint64_t)AUTOCLEAR_DATA_RAW ? begin_writing(q) : 0;
    return r < 0 ? err_set(err, -r, "disk '%s'", node->name) : 0;
}

int qcow2_attach_backing(struct block_node *node, struct block_node *backing)
{
    struct qcow2 *q = qcow2_of(node);
    unsigned below = 1;
    for (struct block_node *n = backing; n->class == &block_qcow2 && qcow2_of(n)->backing; n = qcow2_of(n)->backing)
        below++;
    if (below >= CHAIN_MAX)
        return -ELOOP;
    set_backing(q, backing);
    return 0;
}

struct block_node *qcow2_backing(struct block_node *node)
{
    return qcow2_of(node)->backing;
}

void qcow2_detach_backing(struct block_node *node)
{
    struct qcow2 *q = qcow2_of(node);
    q->backing = NULL;
    q->backing_size = 0;
}

static void qcow2_close(struct block_node *node)
{
    struct qcow2 *q = qcow2_of(node);
    if (is_dirty(q) || q->bitmaps.in_use) {
        struct err err = {0};
        int r = q->failed ? q->failed : block_run_alone(&q->node, write_back, q, &err);
        if (r < 0)
            log_error("disk '%s': its metadata could not be written: %s", node->name, strerror(-r));
    }
    release(q);
}

const struct block_class block_qcow2 = {
    .name = "qcow2",
    .open = qcow2_open,
    .close = qcow2_close,
    .attach = qcow2_attach,
    .submit = qcow2_submit,
    .status = qcow2_status,
    .bitmap_status = dirty_bitmap_status,
    .resize = qcow2_resize,
    .freeze = qcow2_freeze,
    .thaw = qcow2_thaw,
};
