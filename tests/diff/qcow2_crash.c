/* What is left of a qcow2 image when its host dies. Random operations run through the block layer while every write, hole
 * and sync that it sends to the file is recorded. Then each prefix of the record, and states in which writes since the last
 * sync happened in part and in pieces, is made into an image again: it must open, its check must find leaked clusters at
 * worst, and each sector must hold what the last flush promised or something that was written after it. The bitmap "all", which
 * was there before the first write, must be in use or have recorded everything; others come and go.
 *
 * With "faults", instead each of these calls fails once, with EIO or ENOSPC, in a run of its own; what is left when the image
 * is closed after that is judged in the same way.
 *
 * usage: qcow2_crash CLUSTER_SIZE REFCOUNT_BITS EXTENDED_L2 OPERATIONS SEED [faults]
 * The program is linked with --wrap for the system calls that change a file. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "block/block.h"
#include "block/qcow2/qcow2.h"

#define SECTOR 512u
#define DISK_SIZE (256u * 1024)
#define SECTORS (DISK_SIZE / SECTOR)
#define RECORDS_MAX 200000u
#define OPERATIONS_MAX 4096u
#define VARIANTS 4u /* of lost writes, after each record */

struct record {
    enum { RECORD_WRITE, RECORD_HOLE, RECORD_SYNC } kind;
    uint64_t offset, len;
    uint8_t *data;
};

/* A guest's operation: [begun, ended) counts records. */
struct operation {
    enum { OPERATION_WRITE, OPERATION_ZERO, OPERATION_BITMAP, OPERATION_FLUSH, OPERATION_OTHER } kind;
    uint32_t first, count; /* sectors */
    unsigned begun, ended;
    bool failed; /* it may have been done in part, or not at all */
};

static struct record records[RECORDS_MAX];
static struct operation operations[OPERATIONS_MAX];
static unsigned record_count, operation_count;
static bool recording;
static unsigned unknown_from; /* records before the first snapshot was applied: what sectors hold is not modelled behind */
static char snapshots[OPERATIONS_MAX][16];
static unsigned snapshot_first, snapshot_end;
static unsigned calls, fail_at; /* the call that fails; 0: none */
static int fail_code;

static bool fails(void)
{
    if (!recording || ++calls != fail_at)
        return false;
    errno = fail_code;
    return true;
}

static void record(int kind, uint64_t offset, uint64_t len, const struct iovec *iov, int iov_count)
{
    assert(record_count < RECORDS_MAX);
    struct record *r = &records[record_count++];
    *r = (struct record){.kind = (unsigned)kind, .offset = offset, .len = len};
    if (!iov)
        return;
    r->data = malloc(len ? len : 1);
    assert(r->data);
    size_t at = 0;
    for (int i = 0; i < iov_count; i++) {
        memcpy(r->data + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
}

/* ---- recorded system calls, under the names that large files give them ---- */

ssize_t __real_pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_fallocate64(int fd, int mode, off_t offset, off_t len);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t len);

ssize_t __wrap_pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    uint64_t len = 0;
    if (fails())
        return -1;
    for (int i = 0; i < count; i++)
        len += iov[i].iov_len;
    if (recording)
        record(RECORD_WRITE, (uint64_t)offset, len, iov, count);
    return __real_pwritev64v2(fd, iov, count, offset, flags);
}

int __wrap_fdatasync(int fd)
{
    if (fails())
        return -1;
    if (recording)
        record(RECORD_SYNC, 0, 0, NULL, 0);
    return __real_fdatasync(fd);
}

int __wrap_fallocate64(int fd, int mode, off_t offset, off_t len)
{
    if (fails())
        return -1;
    if (recording)
        record(RECORD_HOLE, (uint64_t)offset, (uint64_t)len, NULL, 0);
    return __real_fallocate64(fd, mode, offset, len);
}

/* ---- the guest ---- */

/* A sector as operation `id` writes it. */
static void fill_sector(uint8_t *sector, uint32_t id)
{
    for (unsigned i = 0; i < SECTOR / 4; i++)
        memcpy(sector + (size_t)i * 4, &id, 4);
}

/* Takes, deletes or (late) applies a snapshot. */
static int change_snapshots(struct block_node *node, uint32_t id, bool late)
{
    bool some = snapshot_first < snapshot_end;
    int r;
    if (some && late && id % 3 == 0) {
        if (record_count < unknown_from)
            unknown_from = record_count;
        return qcow2_snapshot_apply(node, snapshots[snapshot_end - 1], NULL);
    }
    if (some && id % 2) {
        r = qcow2_snapshot_delete(node, snapshots[snapshot_first], NULL);
        snapshot_first += r == 0;
        return r;
    }
    snprintf(snapshots[snapshot_end], sizeof *snapshots, "s%u", id);
    r = qcow2_snapshot_create(node, snapshots[snapshot_end], NULL);
    snapshot_end += r == 0;
    return r;
}

/* Adds, merges, clears, disables or removes another bitmap; what is not possible just now is no failure. */
static int change_bitmaps(struct block_node *node, uint32_t id)
{
    static const enum qcow2_bitmap_action actions[] = {QCOW2_BITMAP_ADD,   QCOW2_BITMAP_MERGE,   QCOW2_BITMAP_CLEAR,
                                                       QCOW2_BITMAP_DISABLE, QCOW2_BITMAP_REMOVE};
    char name[16];
    snprintf(name, sizeof name, "b%u", id % 3);
    struct qcow2_bitmap_change change = {
        .action = actions[id / 3 % 5], .name = name, .granularity = 512u << id % 4, .source = "all"};
    int r = qcow2_bitmap_change(node, &change, NULL);
    return r == -EEXIST || r == -ENOENT ? 0 : r;
}

static int do_operation(struct block_node *node, struct operation *op, uint32_t id, bool late)
{
    static uint8_t data[DISK_SIZE];
    uint64_t offset = (uint64_t)op->first * SECTOR, len = (uint64_t)op->count * SECTOR;
    switch (op->kind) {
    case OPERATION_WRITE:
        for (uint32_t i = 0; i < op->count; i++)
            fill_sector(data + (size_t)i * SECTOR, id);
        return block_do(node, BLOCK_WRITE, offset, data, len);
    case OPERATION_ZERO:
        return block_do_request(node, &(struct block_request){
                                          .op = BLOCK_WRITE_ZEROES, .may_unmap = id % 2, .offset = offset, .len = len});
    case OPERATION_FLUSH:
        return block_do(node, BLOCK_FLUSH, 0, NULL, 0);
    case OPERATION_BITMAP:
        return change_bitmaps(node, id);
    case OPERATION_OTHER:
        break;
    }
    return change_snapshots(node, id, late);
}

static void choose(struct operation *op, unsigned refcount_bits)
{
    long r = random() % 100;
    op->kind = r < 60 ? OPERATION_WRITE : r < 75 ? OPERATION_ZERO : r < 82 ? OPERATION_BITMAP
               : r < 94 || refcount_bits < 8 ? OPERATION_FLUSH : OPERATION_OTHER;
    op->first = (uint32_t)random() % SECTORS;
    op->count = 1 + (uint32_t)random() % (random() % 4 ? 8 : 128);
    if (op->count > SECTORS - op->first)
        op->count = SECTORS - op->first;
}

struct guest {
    struct block_node *node;
    unsigned count, refcount_bits;
};

static int run_guest(void *arg)
{
    struct guest *guest = arg;
    for (unsigned i = 0; i < guest->count; i++) {
        struct operation *op = &operations[operation_count++];
        choose(op, guest->refcount_bits);
        op->begun = record_count;
        int r = do_operation(guest->node, op, i + 1, i > guest->count * 2 / 3);
        assert(r == 0 || fail_at);
        op->failed = r < 0;
        op->ended = record_count;
    }
    return 0;
}

/* ---- what may be there ---- */

/* True when a sector may hold what operation `id` left (0: nothing yet) after a crash behind `at` records. */
static bool allowed(uint32_t sector, uint32_t id, bool zero, unsigned at)
{
    unsigned flushed = 0; /* operations before this are promised */
    for (unsigned i = 0; i < operation_count && operations[i].ended <= at; i++)
        if (operations[i].kind >= OPERATION_FLUSH && !operations[i].failed)
            flushed = i;
    bool base_seen = false;
    for (unsigned i = operation_count; i-- > 0;) {
        const struct operation *op = &operations[i];
        if (op->begun > at || op->kind > OPERATION_ZERO || sector < op->first || sector >= op->first + op->count)
            continue;
        if (op->kind == OPERATION_ZERO ? zero : id == i + 1)
            return true;
        if (i < flushed && !op->failed) { /* the last one that was promised: nothing older may show */
            base_seen = true;
            break;
        }
    }
    return !base_seen && zero;
}

static const char *judge_sector(const uint8_t *data, uint32_t sector, unsigned at)
{
    uint32_t id;
    uint8_t whole[SECTOR];
    memcpy(&id, data, 4);
    fill_sector(whole, id);
    if (memcmp(whole, data, SECTOR) != 0)
        return "is torn";
    return allowed(sector, id, id == 0, at) ? NULL : "has lost what was flushed";
}

struct judgement {
    struct block_node *node;
    unsigned at;
    char why[200];
};

static void keep_line(void *arg, const char *line)
{
    struct judgement *j = arg;
    if (strncmp(line, "ERROR", 5) == 0)
        snprintf(j->why, sizeof j->why, "%s", line);
}

/* A sector that is not what it was at first is dirty. */
static const char *judge_bitmap(struct block_node *node, const uint8_t *data)
{
    bool dirty = false;
    for (uint64_t at = 0, len; at < DISK_SIZE; at += len) {
        int r = block_bitmap_status(node, "all", at, DISK_SIZE - at, &len, &dirty);
        if (r == -EIO) /* in use */
            return NULL;
        if (r < 0)
            return "the bitmap is lost";
        for (uint64_t i = at; !dirty && i < at + len; i++)
            if (data[i])
                return "the bitmap has missed a write";
    }
    return NULL;
}

static int judge_image(void *arg)
{
    static uint8_t data[DISK_SIZE];
    struct judgement *j = arg;
    struct qcow2_check check = {.report = keep_line, .arg = j};
    if (qcow2_check(j->node, QCOW2_CHECK_ONLY, &check, NULL) < 0 || block_do(j->node, BLOCK_READ, 0, data, DISK_SIZE) < 0)
        return -1;
    if (check.corruptions)
        return -1;
    const char *bitmap = judge_bitmap(j->node, data);
    if (bitmap) {
        snprintf(j->why, sizeof j->why, "%s", bitmap);
        return -1;
    }
    for (uint32_t s = 0; s < SECTORS && j->at < unknown_from; s++) {
        const char *wrong = judge_sector(data + (size_t)s * SECTOR, s, j->at);
        if (wrong) {
            uint32_t id;
            memcpy(&id, data + (size_t)s * SECTOR, 4);
            snprintf(j->why, sizeof j->why, "sector %u, of operation %u, %s", s, id, wrong);
            return -1;
        }
    }
    return 0;
}

static bool judge(int fd, unsigned at, struct block_ring *ring)
{
    struct err err = {0};
    struct judgement j = {.at = at, .why = "an error"};
    struct block_options options = {.driver = "qcow2", .fd = dup(fd), .read_only = true, .repair = true};
    if (block_open(&options, &j.node, &err) < 0) {
        printf("after %u records: %s\n", at, err.message);
        return false;
    }
    int r = block_attach(j.node, ring, &err);
    if (r == 0)
        r = block_run(ring, judge_image, &j);
    if (r < 0)
        printf("after %u records: %s\n", at, j.why);
    block_close(j.node);
    return r == 0;
}

/* ---- replay ---- */

/* A part of a record, whole sectors of it. */
static void apply(int fd, const struct record *r, uint64_t from, uint64_t to)
{
    if (r->kind == RECORD_WRITE && to > from)
        assert(pwrite(fd, r->data + from, to - from, (off_t)(r->offset + from)) == (ssize_t)(to - from));
    else if (r->kind == RECORD_HOLE)
        __real_fallocate64(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)r->offset, (off_t)r->len);
}

static void copy_file(int from, int to)
{
    static uint8_t buf[1 << 16];
    assert(ftruncate(to, 0) == 0);
    for (off_t at = 0;;) {
        ssize_t n = pread(from, buf, sizeof buf, at);
        if (n <= 0)
            break;
        assert(pwrite(to, buf, (size_t)n, at) == n);
        at += n;
    }
}

/* Of records [synced, at), some did not happen and some only in part. */
static void apply_some(int fd, unsigned synced, unsigned at)
{
    for (unsigned i = synced; i < at; i++) {
        const struct record *r = &records[i];
        uint64_t sectors = (r->len + SECTOR - 1) / SECTOR, from = 0, to = r->len;
        long fate = random() % 4;
        if (fate == 0)
            continue;
        if (fate == 1 && sectors > 1) {
            uint64_t cut = (1 + (uint64_t)random() % (sectors - 1)) * SECTOR;
            *(random() % 2 ? &from : &to) = cut;
        }
        apply(fd, r, from, to);
    }
}

static unsigned replay(int base, struct block_ring *ring)
{
    int synced_fd = memfd_create("synced", MFD_CLOEXEC), fd = memfd_create("crashed", MFD_CLOEXEC);
    unsigned synced = 0, states = 0;
    assert(synced_fd >= 0 && fd >= 0);
    copy_file(base, synced_fd);
    for (unsigned at = 0; at <= record_count; at++) {
        for (unsigned v = 0; v <= VARIANTS; v++) {
            copy_file(synced_fd, fd);
            if (v == 0)
                for (unsigned i = synced; i < at; i++)
                    apply(fd, &records[i], 0, records[i].len);
            else
                apply_some(fd, synced, at);
            if (!judge(fd, at, ring))
                return 0;
            states++;
        }
        if (at == record_count || records[at].kind != RECORD_SYNC)
            continue;
        for (; synced <= at; synced++)
            apply(synced_fd, &records[synced], 0, records[synced].len);
    }
    return states;
}

/* ---- runs ---- */

static int add_bitmap(void *arg)
{
    const struct guest *guest = arg;
    return qcow2_bitmap_change(guest->node, &(struct qcow2_bitmap_change){.name = "all", .granularity = 2048}, NULL);
}

/* One run on a new image; `ret_fd` is the image when it was closed, `base` becomes what it was before. */
static int run_once(const struct qcow2_create *create, struct guest *guest, unsigned seed, struct block_ring *ring, int base)
{
    struct err err = {0};
    struct block_options options = {.driver = "qcow2", .path = create->path, .fd = -1};
    for (unsigned i = 0; i < record_count; i++)
        free(records[i].data);
    record_count = operation_count = calls = snapshot_first = snapshot_end = 0;
    unknown_from = UINT32_MAX;
    srandom(seed);
    if (qcow2_create(create, &err) < 0 || block_open(&options, &guest->node, &err) < 0 ||
        block_attach(guest->node, ring, &err) < 0 || block_run(ring, add_bitmap, guest) < 0) {
        fprintf(stderr, "qcow2_crash: %s\n", err.message);
        return -1;
    }
    int fd = open(create->path, O_RDONLY | O_CLOEXEC);
    assert(fd >= 0);
    copy_file(fd, base);
    recording = true;
    int r = block_run(ring, run_guest, guest);
    block_close(guest->node);
    recording = false;
    if (r < 0)
        close(fd);
    return r < 0 ? -1 : fd;
}

static unsigned inject_faults(const struct qcow2_create *create, struct guest *guest, unsigned seed, struct block_ring *ring, int base)
{
    unsigned states = 0;
    log_to(open("/dev/null", O_WRONLY | O_CLOEXEC)); /* images that could not be written say so */
    for (fail_at = 1; fail_at == 1 || calls >= fail_at - 1; fail_at++) {
        fail_code = fail_at % 2 ? EIO : ENOSPC;
        int fd = run_once(create, guest, seed, ring, base);
        if (fd < 0 || !judge(fd, record_count, ring)) {
            printf("call %u failed\n", fail_at);
            return 0;
        }
        close(fd);
        states++;
    }
    return states;
}

int main(int argc, char **argv)
{
    struct block_ring *ring;
    if (argc < 6)
        return 2;
    char path[32];
    int image = memfd_create("image", MFD_CLOEXEC), base = memfd_create("base", MFD_CLOEXEC), fd;
    assert(image >= 0 && base >= 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", image);
    struct qcow2_create create = {.path = path,
                                  .size = DISK_SIZE,
                                  .version = 3,
                                  .cluster_size = (uint32_t)atoi(argv[1]),
                                  .refcount_bits = (unsigned)atoi(argv[2]),
                                  .extended_l2 = atoi(argv[3])};
    struct guest guest = {.count = (unsigned)atoi(argv[4]), .refcount_bits = create.refcount_bits};
    unsigned seed = (unsigned)atoi(argv[5]), states = 0;
    if (guest.count > OPERATIONS_MAX || block_ring_create("sync", &ring, NULL) < 0 || block_ring_start(ring, NULL) < 0)
        return 2;
    if (argc > 6) {
        states = inject_faults(&create, &guest, seed, ring, base);
    } else {
        fd = run_once(&create, &guest, seed, ring, base);
        states = fd >= 0 ? replay(base, ring) : 0;
    }
    block_ring_free(ring);
    printf("%u operations, %u records, %u states\n", operation_count, record_count, states);
    return states ? 0 : 1;
}
