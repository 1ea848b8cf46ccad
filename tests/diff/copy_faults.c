/* Copies of a disk that is written meanwhile, when the host fails: each kind of copy (block/copy.h) runs once for each call that it
 * makes to the host's file system, and that call fails, with EIO or ENOSPC. The copy must then end with an error, or be right all the
 * same; whatever fails, what the guest has flushed is there, what it reads is what it wrote, and images are sound.
 *
 * usage: copy_faults [KIND...] */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/copy.h"
#include "block/fiber.h"
#include "block/qcow2/qcow2.h"
#include "host_faults.h"

#define SECTORS 512u
#define SECTOR BLOCK_SECTOR_SIZE
#define DISK_SIZE (SECTORS * SECTOR)
#define WRITES 10u
#define WRITE_SECTORS 24u

static const struct job {
    const char *name, *target; /* NULL: none */
    enum block_copy_mode mode;
} jobs[] = {
    {"mirror", "new.qcow2", BLOCK_COPY_MIRROR}, {"mirror-raw", "new.raw", BLOCK_COPY_MIRROR},
    {"backup", "new.qcow2", BLOCK_COPY_BACKUP}, {"commit", NULL, BLOCK_COPY_COMMIT},
    {"flatten", NULL, BLOCK_COPY_FLATTEN},      {"rebase", "other.raw", BLOCK_COPY_REBASE},
};

static const char *const images[] = {"base.raw", "other.raw", "middle.qcow2", "top.qcow2", "new.qcow2", "new.raw", NULL};

/* ---- what a sector may hold: a number for each write to it, in order; 0 is what was there at first ---- */

static uint8_t first[DISK_SIZE];
static struct {
    uint32_t flushed, last; /* writes: that are stable for sure; that were tried */
    bool sure;              /* the last one has succeeded: it is what reads give */
} sectors[SECTORS];
static bool zeroes[WRITES + 1]; /* the write was one of zeroes */

static void fill(uint8_t *data, uint32_t sector, uint32_t number)
{
    for (uint32_t i = 0; i < SECTOR; i += 8) {
        uint32_t words[2] = {zeroes[number] ? 0 : sector + 1, zeroes[number] ? 0 : number};
        memcpy(data + i, words, 8);
    }
}

static bool is_write(const uint8_t *data, uint32_t sector, uint32_t number)
{
    uint8_t wanted[SECTOR];
    fill(wanted, sector, number);
    return memcmp(data, number ? wanted : first + (size_t)sector * SECTOR, SECTOR) == 0;
}

/* `exact`: what reads give now; else what may be in a file. */
static const char *judge_data(const uint8_t *data, bool exact)
{
    static char text[64];
    for (uint32_t sector = 0; sector < SECTORS; sector++) {
        uint32_t from = exact && sectors[sector].sure ? sectors[sector].last : sectors[sector].flushed, number = from;
        while (number <= sectors[sector].last && !is_write(data + (size_t)sector * SECTOR, sector, number))
            number++;
        if (number <= sectors[sector].last)
            continue;
        snprintf(text, sizeof text, "sector %u has none of the writes %u to %u", sector, from, sectors[sector].last);
        return text;
    }
    return NULL;
}

/* ---- a guest and a copy beside it, in fibers ---- */

struct run {
    const struct job *job;
    struct block_node *top, *other, *copy;
    bool guest_ended, flushed;
    struct block_copy_status status;
    int header; /* what changing the backing file's name gave */
    const char *wrong;
    uint8_t now[DISK_SIZE]; /* what the disk read as at the end */
};

static void guest(void *arg)
{
    struct run *run = arg;
    static uint8_t data[WRITE_SECTORS * SECTOR];
    for (uint32_t number = 1; number <= WRITES; number++) {
        uint32_t count = 1 + (uint32_t)random() % WRITE_SECTORS, sector = (uint32_t)random() % (SECTORS - count + 1);
        zeroes[number] = number % 4 == 0;
        for (uint32_t i = 0; i < count; i++)
            fill(data + (size_t)i * SECTOR, sector + i, number);
        enum block_op op = zeroes[number] ? BLOCK_WRITE_ZEROES : BLOCK_WRITE;
        int r = block_do(run->copy, op, (uint64_t)sector * SECTOR, op == BLOCK_WRITE ? data : NULL, (uint64_t)count * SECTOR);
        for (uint32_t i = sector; i < sector + count; i++) {
            sectors[i].last = number;
            sectors[i].sure = r == 0;
        }
        bool flush = number % 5 == 0 && block_do(run->copy, BLOCK_FLUSH, 0, NULL, 0) == 0;
        for (uint32_t i = 0; flush && i < SECTORS; i++)
            if (sectors[i].sure)
                sectors[i].flushed = sectors[i].last;
    }
    run->guest_ended = true;
}

/* In the image's thread others are at work meanwhile. */
static void wait_for(struct run *run)
{
    uint8_t data[SECTOR];
    block_copy_status(run->copy, &run->status);
    while (!run->guest_ended || run->status.state == BLOCK_COPY_RUNNING) {
        (void)block_do(run->copy, BLOCK_READ, 0, data, SECTOR);
        block_copy_status(run->copy, &run->status);
    }
}

/* As polder-vmm ends a copy; the nodes that are not the disk's any more stay in run->other. */
static void end_copy(struct run *run)
{
    struct block_node *old;
    enum block_copy_mode mode = run->job->mode;
    bool done = run->status.state == BLOCK_COPY_DONE;
    if (done && mode == BLOCK_COPY_FLATTEN)
        run->header = qcow2_set_backing(run->top, NULL, NULL, NULL);
    else if (done && mode == BLOCK_COPY_REBASE)
        run->header = qcow2_set_backing(run->top, "other.raw", "raw", NULL);
    block_copy_take(run->copy, &run->top, &run->other);
    if (!done || run->header < 0 || (mode != BLOCK_COPY_FLATTEN && mode != BLOCK_COPY_REBASE))
        return;
    old = qcow2_backing(run->top);
    qcow2_detach_backing(run->top);
    if (run->other)
        assert(qcow2_attach_backing(run->top, run->other) == 0);
    run->other = old;
}

static int copy_and_write(void *arg)
{
    struct run *run = arg;
    static struct fiber_pool pool;
    struct block_copy_options options = {.mode = run->job->mode, .source = run->top, .target = run->other};
    int r = 0;
    if (options.mode == BLOCK_COPY_COMMIT) {
        options.target = qcow2_backing(run->top);
        r = options.target->class->thaw(options.target, NULL);
    } else if (options.target) {
        r = block_attach(options.target, run->top->ring, NULL);
    }
    if (r == 0)
        r = block_copy_create(&options, &run->copy, NULL);
    if (r < 0)
        return r;
    assert(fiber_start(&pool, guest, run) == 0 && block_copy_start(run->copy) == 0);
    wait_for(run);
    block_copy_stop(run->copy);
    run->flushed = block_do(run->copy, BLOCK_FLUSH, 0, NULL, 0) == 0;
    block_copy_status(run->copy, &run->status);
    return 0;
}

/* A fiber of its own, as block_copy_take() wants it. */
static int end_and_read(void *arg)
{
    struct run *run = arg;
    end_copy(run);
    if (run->job->mode == BLOCK_COPY_COMMIT)
        run->other = NULL; /* the top's own */
    unsigned at = atomic_exchange(&fail_at, 0);
    int r = block_do(run->top, BLOCK_READ, 0, run->now, DISK_SIZE);
    run->wrong = r < 0 ? "the disk cannot be read" : judge_data(run->now, true);
    atomic_store(&fail_at, at);
    return 0;
}

/* ---- images ---- */

static struct block_node *open_image(const char *path, bool read_only)
{
    bool raw = strstr(path, ".raw");
    struct err err = {0};
    struct block_node *node;
    struct block_options options = {
        .driver = raw ? "file" : "qcow2", .path = path, .fd = -1, .read_only = read_only, .below = raw && read_only};
    if (block_open(&options, &node, &err) == 0)
        return node;
    printf("%s\n", err.message);
    return NULL;
}

static int check_node(void *arg)
{
    struct qcow2_check check = {0};
    int r = qcow2_check(arg, QCOW2_CHECK_ONLY, &check, NULL);
    return r < 0 ? r : check.corruptions ? -EUCLEAN : 0;
}

static const char *read_image(const char *path, uint8_t *data)
{
    struct err err = {0};
    struct block_node *node = open_image(path, true);
    if (!node)
        return "an image cannot be opened";
    int r = strstr(path, ".raw") ? 0 : block_run_alone(node, check_node, node, &err);
    if (r == 0)
        r = block_read_alone(node, 0, data, DISK_SIZE, &err);
    block_close(node);
    return r == -EUCLEAN ? "an image is damaged" : r < 0 ? "an image cannot be read" : NULL;
}

static void make_raw(const char *path, uint8_t byte, uint64_t len)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
    for (uint64_t at = 0; byte && at + 10240 <= len; at += 30720) {
        uint8_t data[10240];
        memset(data, byte, sizeof data);
        assert(pwrite(fd, data, sizeof data, (off_t)at) == sizeof data);
    }
    close(fd);
}

static int scribble(void *arg)
{
    static uint8_t data[9000 / SECTOR * SECTOR];
    int r = 0;
    for (unsigned i = 0; r == 0 && i < 6; i++) {
        memset(data, 1 + (int)(random() % 255), sizeof data);
        r = block_do(arg, BLOCK_WRITE, (uint64_t)random() % ((DISK_SIZE - sizeof data) / SECTOR) * SECTOR, data, sizeof data);
    }
    return r;
}

static void make_qcow2(const char *path, const char *backing, bool written)
{
    struct err err = {0};
    struct qcow2_create create = {.path = path,
                                  .size = DISK_SIZE,
                                  .version = 3,
                                  .cluster_size = 4096,
                                  .refcount_bits = 16,
                                  .backing = backing,
                                  .backing_format = !backing ? NULL : strstr(backing, ".raw") ? "raw" : "qcow2"};
    assert(qcow2_create(&create, &err) == 0);
    struct block_node *node = open_image(path, false);
    assert(node && (!written || block_run_alone(node, scribble, node, &err) == 0));
    block_close(node);
}

static void make_images(void)
{
    srandom(1);
    make_raw("base.raw", 0x11, 200 * 1024);
    make_raw("other.raw", 0x22, 300 * 1024);
    make_raw("new.raw", 0, DISK_SIZE);
    make_qcow2("middle.qcow2", "base.raw", true);
    make_qcow2("top.qcow2", "middle.qcow2", true);
    make_qcow2("new.qcow2", NULL, false);
    assert(!read_image("top.qcow2", first));
}

/* ---- judgement ---- */

static const char *judge_result(const struct run *run)
{
    static uint8_t data[DISK_SIZE];
    enum block_copy_state state = run->status.state;
    enum block_copy_mode mode = run->job->mode;
    bool ready = state == BLOCK_COPY_READY && run->flushed;
    const char *path = mode == BLOCK_COPY_COMMIT ? "middle.qcow2" : run->job->target;
    if (!ready && !(state == BLOCK_COPY_DONE && mode == BLOCK_COPY_BACKUP))
        return NULL;
    const char *wrong = read_image(path, data);
    if (!wrong && memcmp(data, ready ? run->now : first, DISK_SIZE) != 0)
        wrong = "the target is ready, and reads otherwise";
    return wrong;
}

static const char *judge(const struct run *run, bool fault)
{
    static uint8_t data[DISK_SIZE];
    if (run->wrong)
        return run->wrong;
    if (!fault && (run->status.state == BLOCK_COPY_FAILED || run->header < 0 || !run->flushed))
        return "it failed though nothing else did";
    const char *wrong = read_image("top.qcow2", data);
    if (!wrong)
        wrong = judge_data(data, !fault);
    return wrong ? wrong : judge_result(run);
}

static bool run_once(unsigned index, unsigned at, bool *ret_reached)
{
    const struct job *job = &jobs[index];
    static struct run run;
    struct block_ring *ring = NULL;
    memset(sectors, 0, sizeof sectors);
    srandom(2);
    run = (struct run){.job = job, .top = open_image("top.qcow2", false)};
    run.other = job->target ? open_image(job->target, job->mode == BLOCK_COPY_REBASE) : NULL;
    assert(run.top && (run.other || !job->target));
    assert(block_ring_create("sync", &ring, NULL) == 0 && block_ring_start(ring, NULL) == 0 && block_attach(run.top, ring, NULL) == 0);
    for (uint32_t i = 0; i < SECTORS; i++)
        sectors[i].sure = true;
    failed = "none";
    atomic_store(&calls, 0);
    atomic_store(&fail_at, at);
    int r = block_run(ring, copy_and_write, &run);
    if (r == 0)
        r = block_run(ring, end_and_read, &run);
    block_close(run.other);
    block_close(run.top);
    block_ring_free(ring);
    *ret_reached = atomic_load(&calls) >= at;
    atomic_store(&fail_at, 0);
    const char *wrong = r < 0 && !at ? "it did not begin" : r < 0 ? NULL : judge(&run, at);
    if (wrong)
        printf("%s, call %u, %s, fails: %s\n", job->name, at, failed, wrong);
    return !wrong;
}

static const char *name_of(unsigned index)
{
    return index < sizeof jobs / sizeof *jobs ? jobs[index].name : NULL;
}

int main(int argc, char **argv)
{
    const struct fault_test test = {.images = images, .make = make_images, .name = name_of, .run = run_once};
    return freopen("/dev/null", "w", stderr) ? fault_test_run(&test, argc, argv) : 2; /* what the log says of failures */
}
