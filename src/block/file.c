/* Images in regular files and on block devices.
 *
 * One writer or many readers hold an open-file-description lock, so that two machines never write one image. Transfers
 * that end short go on where they stopped; with direct I/O, misaligned buffers go through an aligned one in pieces. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/fdname.h"
#include "base/iov.h"
#include "base/log.h"
#include "base/own.h"
#include "block/block.h"
#include "block/lock.h"

#define RETRIES_MAX 16
#define FREEZE_TRIES 8u
#define BOUNCE_MAX (UINT64_C(1) << 20)
#define IOV_BATCH_MAX 1024u
#define ZERO_CHUNK 65536u
#define ZERO_CHUNKS 16u

struct file_node {
    struct block_node node; /* first */
    int fd;
    bool direct;
    bool grows; /* below a format */
    bool dirty;     /* something was written since the last flush began */
    unsigned syncs; /* in flight */
    bool stable;    /* all that was written, as the last flush said */
    uint64_t data_from, data_to; /* no hole in there when it was last looked for: some file systems look at each page for that */
};

static uint8_t zeroes[ZERO_CHUNK] __attribute__((aligned(4096)));

static void transfer(struct block_request *req);
static void zero_step(struct block_request *req);

static struct block_request *request_of(struct block_io *io)
{
    return (struct block_request *)(void *)((char *)io - offsetof(struct block_request, io));
}

static struct file_node *file_of(const struct block_request *req)
{
    return (struct file_node *)req->node;
}

static void wrote(struct file_node *file)
{
    file->dirty = true;
    file->stable = false;
}

static void finish(struct block_request *req, int result)
{
    free(req->bounce.iov_base);
    req->bounce.iov_base = NULL;
    struct file_node *file = file_of(req);
    if (req->op != BLOCK_READ && req->op != BLOCK_FLUSH)
        wrote(file);
    if (req->op == BLOCK_DISCARD || req->op == BLOCK_WRITE_ZEROES)
        file->data_from = file->data_to = 0;
    if (req->op == BLOCK_WRITE && file->grows && req->progress && req->offset + req->progress > file->node.size)
        file->node.size = req->offset + req->progress;
    struct stat st;
    if (result < 0 && file->grows && fstat(file->fd, &st) == 0 && (uint64_t)st.st_size > file->node.size)
        file->node.size = (uint64_t)st.st_size; /* what failed may have made it longer */
    req->done(req, result);
}

static void start_io(struct block_request *req, struct block_io io)
{
    io.fd = file_of(req)->fd;
    req->io = io;
    block_ring_submit(req->node->ring, &req->io);
}

/* True when `result` is worth another attempt. */
static bool again(struct block_request *req, int result)
{
    /* nothing was there when it was read, and a write has made the file longer since */
    bool raced = result == 0 && req->op == BLOCK_READ && file_of(req)->grows;
    return (result == -EINTR || result == -EAGAIN || raced) && req->retries++ < RETRIES_MAX;
}

/* ---- reads and writes ---- */

static void restore_iov(struct block_request *req)
{
    if (req->cut)
        *req->cut = req->whole;
    req->cut = NULL;
}

/* True when the rest of a read lies behind the end of the file. */
static bool past_end(const struct block_request *req)
{
    return req->op == BLOCK_READ && req->progress < req->len && req->offset + req->progress >= req->node->size;
}

static void transfer_done(struct block_io *io, int result)
{
    struct block_request *req = request_of(io);
    restore_iov(req);
    uint64_t before = req->progress;
    if (result > 0) {
        if (req->bounce.iov_base && req->op == BLOCK_READ)
            iov_write(req->iov, req->iov_count, req->progress, req->bounce.iov_base, (size_t)result);
        req->progress += (uint64_t)result;
    }
    if (result >= 0 && file_of(req)->grows && past_end(req)) {
        iov_zero(req->iov, req->iov_count, req->progress, req->len - req->progress);
        finish(req, 0);
        return;
    }
    if (req->progress < req->len && file_of(req)->direct)
        req->progress -= req->progress % req->node->block_size; /* a write made the file longer behind an odd end: from a block on */
    if (req->progress > before) {
        req->retries = 0;
    } else if (!again(req, result < 0 ? result : 0)) {
        finish(req, result < 0 ? result : -EIO); /* nothing moved: the file is shorter than it was */
        return;
    }
    transfer(req);
}

static void transfer_bounced(struct block_request *req, struct block_io *io)
{
    uint64_t left = req->len - req->progress;
    req->bounce.iov_len = left < BOUNCE_MAX ? left : BOUNCE_MAX;
    if (req->op == BLOCK_WRITE)
        iov_read(req->iov, req->iov_count, req->progress, req->bounce.iov_base, req->bounce.iov_len);
    io->iov = &req->bounce;
    io->iov_count = 1;
}

/* Points io at what is left of the iovec; its first element is cut until the transfer is done. */
static void transfer_in_place(struct block_request *req, struct block_io *io)
{
    struct iovec *iov = req->iov;
    unsigned count = req->iov_count;
    uint64_t skip = req->progress;
    while (count && skip >= iov->iov_len) {
        skip -= iov->iov_len;
        iov++;
        count--;
    }
    if (skip) {
        req->whole = *iov;
        req->cut = iov;
        iov_advance(&iov, &count, skip);
    }
    io->iov = iov;
    io->iov_count = count < IOV_BATCH_MAX ? count : IOV_BATCH_MAX;
}

static void transfer(struct block_request *req)
{
    if (req->progress >= req->len) {
        finish(req, 0);
        return;
    }
    struct block_io io = {.kind = req->op == BLOCK_READ ? BLOCK_IO_READ : BLOCK_IO_WRITE,
                          .flags = req->stable && req->op == BLOCK_WRITE ? RWF_DSYNC : 0,
                          .cached = req->op == BLOCK_WRITE && !req->stable && !file_of(req)->direct,
                          .offset = req->offset + req->progress,
                          .len = req->len - req->progress,
                          .done = transfer_done};
    if (req->bounce.iov_base)
        transfer_bounced(req, &io);
    else
        transfer_in_place(req, &io);
    start_io(req, io);
}

static bool aligned(const struct block_request *req)
{
    uintptr_t mask = req->node->memory_alignment - 1u;
    uintptr_t bits = 0;
    for (unsigned i = 0; i < req->iov_count; i++)
        bits |= (uintptr_t)req->iov[i].iov_base | req->iov[i].iov_len;
    return !(bits & mask);
}

static void transfer_start(struct block_request *req)
{
    if (!aligned(req)) {
        size_t size = req->len < BOUNCE_MAX ? req->len : BOUNCE_MAX;
        req->bounce.iov_base = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);
        if (!req->bounce.iov_base) {
            finish(req, -ENOMEM);
            return;
        }
    }
    transfer(req);
}

/* ---- flush ---- */

static void sync_done(struct block_io *io, int result)
{
    struct block_request *req = request_of(io);
    struct file_node *file = file_of(req);
    if (result < 0)
        wrote(file);
    file->stable = --file->syncs == 0 && !file->dirty; /* what was written since this one began may be another's */
    finish(req, result < 0 ? result : 0);
}

static void sync_start(struct block_request *req)
{
    file_of(req)->dirty = false;
    file_of(req)->syncs++;
    start_io(req, (struct block_io){.kind = BLOCK_IO_SYNC, .done = sync_done});
}

/* ---- discard, write zeroes: a hole, else a zeroed range, else plain zeroes; as far as the file system goes ---- */

enum zero_stage { PUNCH_HOLE, ZERO_RANGE, WRITE_ZEROES };

static void zero_finish(struct block_request *req)
{
    if (req->stable)
        sync_start(req);
    else
        finish(req, 0);
}

static bool unsupported(int result)
{
    return result == -EOPNOTSUPP || result == -ENOSYS || result == -EINVAL || result == -ENODEV;
}

static void zero_done(struct block_io *io, int result)
{
    struct block_request *req = request_of(io);
    if (again(req, result)) {
        zero_step(req);
    } else if (result >= 0) {
        zero_finish(req);
    } else if (!unsupported(result)) {
        finish(req, result);
    } else if (req->op == BLOCK_DISCARD) {
        zero_finish(req); /* only advice */
    } else {
        req->stage++;
        zero_step(req);
    }
}

static void write_zeroes_done(struct block_io *io, int result)
{
    struct block_request *req = request_of(io);
    if (result <= 0 && !again(req, result)) {
        finish(req, result < 0 ? result : -EIO);
        return;
    }
    if (result > 0)
        req->progress += (uint64_t)result;
    zero_step(req);
}

static void write_zeroes(struct block_request *req)
{
    static const struct iovec chunks[ZERO_CHUNKS] = {[0 ... ZERO_CHUNKS - 1] = {zeroes, ZERO_CHUNK}};
    uint64_t left = req->len - req->progress;
    if (!left) {
        zero_finish(req);
        return;
    }
    struct block_io io = {.kind = BLOCK_IO_WRITE, .offset = req->offset + req->progress, .done = write_zeroes_done};
    if (left < ZERO_CHUNK) {
        req->whole = (struct iovec){zeroes, left};
        io.iov = &req->whole;
        io.iov_count = 1;
    } else {
        io.iov = chunks;
        io.iov_count = left / ZERO_CHUNK < ZERO_CHUNKS ? (unsigned)(left / ZERO_CHUNK) : ZERO_CHUNKS;
    }
    start_io(req, io);
}

static void zero_step(struct block_request *req)
{
    if (req->stage >= WRITE_ZEROES) {
        if (req->fast)
            finish(req, -ENOTSUP);
        else
            write_zeroes(req);
        return;
    }
    int mode = req->stage == PUNCH_HOLE ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    start_io(req, (struct block_io){.kind = BLOCK_IO_FALLOCATE,
                                    .flags = mode | FALLOC_FL_KEEP_SIZE,
                                    .offset = req->offset,
                                    .len = req->len,
                                    .done = zero_done});
}

static void zero_start(struct block_request *req)
{
    req->stage = req->op == BLOCK_DISCARD || req->may_unmap ? PUNCH_HOLE : ZERO_RANGE;
    zero_step(req);
}

static void file_submit(struct block_node *node, struct block_request *req)
{
    req->node = node;
    req->progress = 0;
    req->retries = req->stage = 0;
    req->cut = NULL;
    req->bounce = (struct iovec){0};
    if (req->op == BLOCK_FLUSH && !((struct file_node *)node)->stable)
        sync_start(req);
    else if (req->op == BLOCK_FLUSH || !req->len)
        finish(req, 0);
    else if (req->op == BLOCK_READ || req->op == BLOCK_WRITE)
        transfer_start(req);
    else
        zero_start(req);
}

/* ---- opening ---- */

static int check_kind(mode_t mode, const struct block_options *o, struct err *err)
{
    if (S_ISREG(mode) || S_ISBLK(mode))
        return 0;
    return err_say(err, EINVAL, "disk '%s' is neither a regular file nor a block device", o->path);
}

static int open_path(const struct block_options *o, struct err *err)
{
    struct stat st;
    bool given = fdname_parse(o->path) >= 0;
    if (!given && stat(o->path, &st) < 0)
        return err_set(err, errno, "disk '%s'", o->path);
    int r = given ? 0 : check_kind(st.st_mode, o, err); /* before opening: that waits on a FIFO */
    if (r < 0)
        return r;
    int flags = (o->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | (o->direct ? O_DIRECT : 0);
    int fd = fdname_open(o->path, flags, 0);
    if (fd >= 0)
        return fd;
    int code = errno;
    if (code == EINVAL && o->direct)
        return err_say(err, code, "disk '%s': its file system has no direct I/O; use the page cache", o->path);
    if (code == EACCES && given)
        return err_say(err, code, "disk '%s' was not opened for reading%s", o->path, o->read_only ? "" : " and writing");
    if ((code == EACCES || code == EROFS || code == EPERM) && !o->read_only && access(o->path, R_OK) == 0)
        return err_say(err, code, "disk '%s' cannot be written (%s); attach it read-only or change its mode", o->path,
                       code == EROFS ? "read-only file system" : "no permission");
    return err_set(err, code, "disk '%s'", o->path);
}

static int lock_image(int fd, const struct block_options *o, struct err *err)
{
    if (block_lock(fd, o->read_only) == 0)
        return 0;
    return err_say(err, EBUSY, "disk '%s' is in use by another machine or tool%s", o->path, o->read_only ? ", which writes it" : "");
}

static int measure_device(int fd, struct block_node *node)
{
    int logical = 512;
    unsigned physical = 512, optimal = 0;
    if (ioctl(fd, BLKGETSIZE64, &node->size) < 0)
        return -errno;
    ioctl(fd, BLKSSZGET, &logical);
    ioctl(fd, BLKPBSZGET, &physical);
    ioctl(fd, BLKIOOPT, &optimal);
    node->block_size = (uint32_t)logical;
    node->physical_block_size = physical;
    node->optimal_io_size = optimal;
    node->memory_alignment = (uint32_t)logical;
    return 0;
}

/* What direct I/O asks of a regular file, where the kernel says so (Linux 6.1). */
static void measure_direct(int fd, struct block_node *node)
{
    node->memory_alignment = 512;
#ifdef STATX_DIOALIGN
    struct statx sx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) < 0 || !(sx.stx_mask & STATX_DIOALIGN) ||
        !sx.stx_dio_offset_align)
        return;
    node->memory_alignment = sx.stx_dio_mem_align;
    node->block_size = sx.stx_dio_offset_align > 512 ? sx.stx_dio_offset_align : 512;
#endif
}

static int measure(int fd, const struct block_options *o, struct block_node *node, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_set(err, errno, "disk '%s'", o->path);
    int r = check_kind(st.st_mode, o, err);
    if (r < 0)
        return r;
    *node = (struct block_node){.class = &block_file,
                                .size = (uint64_t)st.st_size,
                                .block_size = 512,
                                .physical_block_size = 4096,
                                .memory_alignment = 1,
                                .read_only = o->read_only,
                                .can_discard = !o->read_only,
                                .can_write_zeroes = !o->read_only};
    bool direct = fcntl(fd, F_GETFL) & O_DIRECT;
    if (S_ISBLK(st.st_mode)) {
        if (measure_device(fd, node) < 0)
            return err_set(err, errno, "disk '%s'", o->path);
    } else if (direct) {
        measure_direct(fd, node);
    }
    if (!direct) {
        node->memory_alignment = 1;
        node->block_size = 512;
    }
    node->discard_alignment = node->block_size > 4096 ? node->block_size : 4096;
    if (o->below)
        return 0;
    if (!node->size)
        return err_say(err, EINVAL, "disk '%s' is empty; make it larger (truncate -s SIZE)", o->path);
    if (node->size % node->block_size)
        return err_say(err, EINVAL, "disk '%s' has %llu bytes, not a multiple of %u; is it an image? (pad: truncate -s %%%u)",
                       o->path, (unsigned long long)node->size, node->block_size, node->block_size);
    return 0;
}

static int file_open(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    struct block_options o = *options;
    own_fd int fd = -1;
    int use = o.fd;
    if (use < 0)
        use = fd = open_path(&o, err);
    if (use < 0)
        return use;
    if (!o.path)
        o.path = "fd";
    struct block_node node;
    int r = measure(use, &o, &node, err);
    if (r == 0)
        r = lock_image(use, &o, err);
    if (r < 0)
        return r;
    struct file_node *file = calloc(1, sizeof *file);
    if (!file)
        return err_set(err, ENOMEM, "disk '%s'", o.path);
    *file = (struct file_node){
        .node = node, .fd = use, .direct = fcntl(use, F_GETFL) & O_DIRECT, .grows = o.below};
    file->node.name = strdup(o.path);
    if (!file->node.name) {
        free(file);
        return err_set(err, ENOMEM, "disk '%s'", o.path);
    }
    TAKE_FD(fd);
    *ret_node = &file->node;
    return 0;
}

static void file_close(struct block_node *node)
{
    struct file_node *file = (struct file_node *)node;
    if (file->dirty && fdatasync(file->fd) < 0)
        log_error("disk: last flush failed: errno %d", errno);
    block_unlock(file->fd); /* io_uring may keep the file open for a moment, and with it the lock, even after the process has ended */
    close(file->fd);
    free(file->node.name);
    free(file);
}

/* ---- extents, size ---- */

/* File systems' blocks are no smaller than ours, only the file's end may be odd. */
static uint64_t whole_blocks(const struct block_node *node, uint64_t len, uint64_t most)
{
    if (len >= most)
        return most;
    len = (len + node->block_size - 1) / node->block_size * node->block_size;
    return len < most ? len : most;
}

static int file_status(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent)
{
    struct file_node *file = (struct file_node *)node;
    *ret_extent = (struct block_extent){.len = len, .present = true, .has_offset = true, .offset = offset, .name = node->name};
    if (offset >= file->data_from && offset < file->data_to) {
        ret_extent->data = true;
        ret_extent->len = whole_blocks(node, file->data_to - offset, len);
        return 0;
    }
    off_t data = lseek(file->fd, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno == ENXIO) { /* no data from here on */
        ret_extent->zero = true;
    } else if (data > (off_t)offset) {
        ret_extent->zero = true;
        ret_extent->len = (uint64_t)data - offset < len ? (uint64_t)data - offset : len;
    } else {
        ret_extent->data = true;
        off_t hole = data < 0 ? -1 : lseek(file->fd, (off_t)offset, SEEK_HOLE);
        if (hole > (off_t)offset) {
            ret_extent->len = (uint64_t)hole - offset;
            file->data_from = offset;
            file->data_to = (uint64_t)hole;
        }
    }
    ret_extent->len = whole_blocks(node, ret_extent->len, len);
    return 0;
}

static int file_resize(struct block_node *node, uint64_t size, struct err *err)
{
    struct file_node *file = (struct file_node *)node;
    if (size > INT64_MAX)
        return err_say(err, EFBIG, "disk '%s': no file can have %llu bytes", node->name, (unsigned long long)size);
    if (ftruncate(file->fd, (off_t)size) < 0)
        return err_set(err, errno, "disk '%s': resize", node->name);
    node->size = size;
    wrote(file);
    return 0;
}

static void set_read_only(struct block_node *node, bool read_only)
{
    node->read_only = read_only;
    node->can_discard = node->can_write_zeroes = !read_only;
}

/* The lock for reading; who tries to open the image at this moment may be in its way for an instant. On an error it is the one for
 * writing again. */
static int lock_for_readers(const struct file_node *file)
{
    int r = -EBUSY;
    for (unsigned i = 0; r < 0 && i < FREEZE_TRIES; i++) {
        if (i)
            usleep(1000);
        r = block_lock(file->fd, true);
    }
    int back = r < 0 ? -EBUSY : 0;
    for (unsigned i = 0; back < 0 && i < FREEZE_TRIES; i++) {
        back = block_lock(file->fd, false);
        if (back < 0)
            usleep(1000);
    }
    if (back < 0)
        log_error("disk '%s': its lock was lost: another program has the image", file->node.name);
    return r;
}

static int file_freeze(struct block_node *node)
{
    int r = block_do(node, BLOCK_FLUSH, 0, NULL, 0);
    if (r == 0)
        r = lock_for_readers((struct file_node *)node);
    if (r == 0)
        set_read_only(node, true);
    return r;
}

/* The same file, open for writing and locked so. */
static int reopen_writable(const struct file_node *file, struct err *err)
{
    struct block_options options = {.path = file->node.name};
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file->fd);
    own_fd int fd = open(link, O_RDWR | O_CLOEXEC | (file->direct ? O_DIRECT : 0));
    if (fd < 0)
        return err_set(err, errno, "disk '%s'", file->node.name);
    block_unlock(file->fd); /* our own would be in the way */
    int r = lock_image(fd, &options, err);
    if (r < 0 && block_lock(file->fd, true) < 0)
        log_warn("disk '%s': another machine or tool writes it", file->node.name);
    return r < 0 ? r : TAKE_FD(fd);
}

static int file_thaw(struct block_node *node, struct err *err)
{
    struct file_node *file = (struct file_node *)node;
    int fd = reopen_writable(file, err);
    if (fd < 0)
        return fd;
    close(file->fd);
    file->fd = fd;
    file->stable = false; /* as others left it */
    set_read_only(node, false);
    return 0;
}

const struct block_class block_file = {
    .name = "file",
    .open = file_open,
    .close = file_close,
    .submit = file_submit,
    .status = file_status,
    .resize = file_resize,
    .freeze = file_freeze,
    .thaw = file_thaw,
};
