/* The node: ciphertext goes to and from the node below.
 *
 * Reads are decrypted where the reader wants them. Writes are encrypted in buffers of WRITE_CHUNK bytes, WRITES_MAX of them at
 * most: a longer write goes chunk by chunk, more writes wait in `backlog`. Discards are dropped, as they would show
 * which sectors are in use. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/iov.h"
#include "base/own.h"
#include "block/crypt/luks.h"

#define WRITE_CHUNK (UINT64_C(256) << 10)
#define WRITES_MAX 64u

/* A request of ours to the node below, for one to us. */
struct crypt_op {
    struct block_request request; /* first */
    struct crypt_node *crypt;
    struct block_request *parent;
    struct iovec iov;
    uint8_t *buf; /* WRITE_CHUNK bytes, of those that write */
    struct crypt_op *next;
};

struct crypt_node {
    struct block_node node; /* first */
    struct block_node *lower;
    bool owns_lower;
    struct crypt_cipher *cipher; /* NULL: only the header was wanted */
    struct luks_info info;
    struct crypt_op *free_reads, *free_writes;
    unsigned writes;
    struct block_request *backlog, **backlog_end;
};

static void start_write(struct crypt_node *crypt, struct block_request *req);
static void write_chunk(struct crypt_op *op);

static struct crypt_node *crypt_of(struct block_node *node)
{
    return (struct crypt_node *)(void *)node;
}

static struct crypt_op *take_op(struct crypt_op **list)
{
    struct crypt_op *op = *list;
    if (op)
        *list = op->next;
    return op ? op : calloc(1, sizeof *op);
}

static void give_op(struct crypt_op **list, struct crypt_op *op)
{
    op->next = *list;
    *list = op;
}

/* ---- reads, flushes ---- */

static void pass_done(struct block_request *request, int result)
{
    struct crypt_op *op = (struct crypt_op *)(void *)request;
    struct crypt_node *crypt = op->crypt;
    struct block_request *parent = op->parent;
    give_op(&crypt->free_reads, op);
    if (result == 0 && parent->op == BLOCK_READ)
        result = crypt_decrypt(crypt->cipher, parent->offset, parent->iov, parent->iov_count);
    parent->done(parent, result);
}

static void pass(struct crypt_node *crypt, struct block_request *req)
{
    struct crypt_op *op = take_op(&crypt->free_reads);
    if (!op) {
        req->done(req, -ENOMEM);
        return;
    }
    op->crypt = crypt;
    op->parent = req;
    op->request = (struct block_request){.op = req->op,
                                         .offset = req->offset + crypt->info.payload_offset,
                                         .len = req->len,
                                         .iov = req->iov,
                                         .iov_count = req->iov_count,
                                         .done = pass_done};
    block_submit(crypt->lower, &op->request);
}

/* ---- writes ---- */

static void end_write(struct crypt_op *op, int result)
{
    struct crypt_node *crypt = op->crypt;
    struct block_request *parent = op->parent;
    give_op(&crypt->free_writes, op);
    crypt->writes--;
    struct block_request *next = crypt->backlog;
    if (next && !(crypt->backlog = next->next))
        crypt->backlog_end = &crypt->backlog;
    parent->done(parent, result);
    if (next)
        start_write(crypt, next);
}

static void write_done(struct block_request *request, int result)
{
    struct crypt_op *op = (struct crypt_op *)(void *)request;
    op->parent->progress += request->len;
    if (result < 0 || op->parent->progress >= op->parent->len)
        end_write(op, result);
    else
        write_chunk(op);
}

static void write_chunk(struct crypt_op *op)
{
    struct crypt_node *crypt = op->crypt;
    const struct block_request *parent = op->parent;
    uint64_t left = parent->len - parent->progress, at = parent->offset + parent->progress;
    op->iov = (struct iovec){op->buf, left < WRITE_CHUNK ? left : WRITE_CHUNK};
    if (parent->op == BLOCK_WRITE)
        iov_read(parent->iov, parent->iov_count, parent->progress, op->buf, op->iov.iov_len);
    else
        memset(op->buf, 0, op->iov.iov_len);
    if (crypt_encrypt(crypt->cipher, at, op->buf, op->iov.iov_len) < 0) {
        end_write(op, -EIO);
        return;
    }
    op->request = (struct block_request){.op = BLOCK_WRITE,
                                         .stable = parent->stable,
                                         .offset = at + crypt->info.payload_offset,
                                         .len = op->iov.iov_len,
                                         .iov = &op->iov,
                                         .iov_count = 1,
                                         .done = write_done};
    block_submit(crypt->lower, &op->request);
}

static void start_write(struct crypt_node *crypt, struct block_request *req)
{
    if (crypt->writes == WRITES_MAX) {
        req->next = NULL;
        *crypt->backlog_end = req;
        crypt->backlog_end = &req->next;
        return;
    }
    struct crypt_op *op = take_op(&crypt->free_writes);
    if (op && !op->buf)
        op->buf = aligned_alloc(4096, WRITE_CHUNK);
    if (!op || !op->buf) {
        free(op);
        req->done(req, -ENOMEM);
        return;
    }
    op->crypt = crypt;
    op->parent = req;
    crypt->writes++;
    write_chunk(op);
}

static void crypt_submit(struct block_node *node, struct block_request *req)
{
    struct crypt_node *crypt = crypt_of(node);
    req->progress = 0;
    if (!crypt->cipher && req->op != BLOCK_FLUSH)
        req->done(req, -ENOKEY);
    else if (req->op == BLOCK_FLUSH || (req->op == BLOCK_READ && req->len))
        pass(crypt, req);
    else if (req->op == BLOCK_DISCARD || !req->len)
        req->done(req, 0);
    else if (req->compress || (req->op == BLOCK_WRITE_ZEROES && req->fast))
        req->done(req, -ENOTSUP);
    else
        start_write(crypt, req);
}

/* ---- the rest of the class ---- */

static int crypt_status(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent)
{
    (void)offset; /* a hole of the file reads as noise */
    *ret_extent = (struct block_extent){.len = len, .present = true, .data = true, .name = node->name};
    return 0;
}

static int crypt_resize(struct block_node *node, uint64_t size, struct err *err)
{
    struct crypt_node *crypt = crypt_of(node);
    if (crypt->info.payload_len)
        return err_say(err, ENOTSUP, "disk '%s': its LUKS header states a fixed size", node->name);
    if (size > INT64_MAX - crypt->info.payload_offset || !crypt->lower->class->resize)
        return err_say(err, EFBIG, "disk '%s': it cannot be as large", node->name);
    int r = crypt->lower->class->resize(crypt->lower, size + crypt->info.payload_offset, err);
    if (r == 0)
        node->size = size;
    return r;
}

static int crypt_attach(struct block_node *node, struct block_ring *ring, struct err *err)
{
    return block_attach(crypt_of(node)->lower, ring, err);
}

static void free_ops(struct crypt_op *op)
{
    while (op) {
        struct crypt_op *next = op->next;
        free(op->buf);
        free(op);
        op = next;
    }
}

static void crypt_close(struct block_node *node)
{
    struct crypt_node *crypt = crypt_of(node);
    free_ops(crypt->free_reads);
    free_ops(crypt->free_writes);
    crypt_cipher_free(crypt->cipher);
    if (crypt->owns_lower)
        block_close(crypt->lower);
    free(node->name);
    free(crypt);
}

/* ---- read-only and back ---- */

static int crypt_freeze(struct block_node *node)
{
    struct block_node *lower = crypt_of(node)->lower;
    int r = lower->class->freeze(lower);
    if (r == 0)
        node->read_only = true;
    return r;
}

static int crypt_thaw(struct block_node *node, struct err *err)
{
    struct block_node *lower = crypt_of(node)->lower;
    int r = lower->class->thaw(lower, err);
    if (r == 0)
        node->read_only = false;
    return r;
}

/* ---- opening ---- */

static int fill_node(struct crypt_node *crypt, struct err *err)
{
    struct block_node *node = &crypt->node;
    const struct block_node *lower = crypt->lower;
    const struct luks_info *info = &crypt->info;
    uint64_t after = lower->size > info->payload_offset ? lower->size - info->payload_offset : 0;
    *node = (struct block_node){.class = &block_luks,
                                .size = after,
                                .block_size = lower->block_size > info->sector_size ? lower->block_size : info->sector_size,
                                .physical_block_size = lower->physical_block_size,
                                .optimal_io_size = lower->optimal_io_size,
                                .memory_alignment = lower->memory_alignment,
                                .discard_alignment = lower->discard_alignment,
                                .read_only = lower->read_only,
                                .name = strdup(lower->name)};
    crypt->backlog_end = &crypt->backlog;
    if (!node->name)
        return err_set(err, ENOMEM, "disk");
    if (info->payload_offset % lower->block_size)
        return err_say(err, EINVAL, "disk '%s': its payload is not aligned for direct I/O; use the page cache", node->name);
    if (info->payload_len > after)
        return err_say(err, EINVAL, "disk '%s' is cut off: its header states %llu bytes of payload, and %llu are there", node->name,
                       (unsigned long long)info->payload_len, (unsigned long long)after);
    if (info->payload_len)
        node->size = info->payload_len;
    node->size -= node->size % node->block_size;
    return 0;
}

int crypt_node_wrap(struct block_node *lower, bool owns_lower, struct crypt_cipher *cipher, struct block_node **ret_node, struct err *err)
{
    struct crypt_node *crypt = calloc(1, sizeof *crypt);
    if (!crypt)
        return err_set(err, ENOMEM, "disk '%s'", lower->name);
    *crypt = (struct crypt_node){.lower = lower, .info.sector_size = crypt_cipher_sector_size(cipher)};
    int r = fill_node(crypt, err);
    if (r < 0) {
        crypt_close(&crypt->node);
        return r;
    }
    crypt->cipher = cipher;
    crypt->owns_lower = owns_lower;
    *ret_node = &crypt->node;
    return 0;
}

static int luks_build(struct crypt_node *crypt, const struct block_options *o, int fd, struct err *err)
{
    struct block_options below = {.path = o->path, .fd = fd, .read_only = o->read_only, .direct = o->direct, .below = true};
    if (!o->key && !o->no_key)
        return err_say(err, ENOKEY, "disk '%s' is encrypted and needs its key (key=FILE, --key FILE)", o->path ? o->path : "fd");
    int r = block_open(&below, &crypt->lower, err);
    if (r < 0)
        return r;
    crypt->owns_lower = true;
    struct block_node *lower = crypt->lower;
    r = luks_load(lower, 0, lower->size, o->key, lower->name, &crypt->info, &crypt->cipher, err);
    return r < 0 ? r : fill_node(crypt, err);
}

static int luks_open(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    struct crypt_node *crypt = calloc(1, sizeof *crypt);
    int fd = options->fd >= 0 ? fcntl(options->fd, F_DUPFD_CLOEXEC, 0) : -1; /* should this fail, the caller keeps its own */
    if (!crypt || (options->fd >= 0 && fd < 0)) {
        free(crypt);
        return err_set(err, ENOMEM, "disk");
    }
    int r = luks_build(crypt, options, fd, err);
    if (r == 0 && !crypt->node.size)
        r = err_say(err, EINVAL, "disk '%s' has a LUKS header and nothing behind it", crypt->node.name);
    if (r < 0) {
        if (!crypt->lower && fd >= 0)
            close(fd);
        crypt_close(&crypt->node);
        return r;
    }
    if (options->fd >= 0)
        close(options->fd);
    *ret_node = &crypt->node;
    return 0;
}

void luks_get_info(struct block_node *node, struct luks_info *ret_info)
{
    *ret_info = crypt_of(node)->info;
}

const struct block_class block_luks = {
    .name = "luks",
    .open = luks_open,
    .close = crypt_close,
    .attach = crypt_attach,
    .submit = crypt_submit,
    .status = crypt_status,
    .resize = crypt_resize,
    .freeze = crypt_freeze,
    .thaw = crypt_thaw,
};
