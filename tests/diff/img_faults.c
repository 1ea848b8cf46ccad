/* polder-img when the host fails: each command of a table runs once for each call that it makes to the host's file system, and that
 * call fails, with EIO or ENOSPC. The command must then say so in one line or have done its work all the same; images are sound
 * (leaked clusters at worst) and read as before or as they should afterwards; and the command, given again, succeeds.
 *
 * usage: img_faults [COMMAND...]
 * The program is polder-img's own, its main renamed, linked with what makes calls fail (host_faults.h). */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/block.h"
#include "block/qcow2/qcow2.h"
#include "host_faults.h"

#define DISK_SIZE (256u * 1024)
#define BASE_SIZE (200u * 1024)
#define ARGUMENTS_MAX 16

int img_program(int argc, char **argv);

/* ---- commands ---- */

static const struct command {
    const char *name, *line; /* as typed behind polder-img */
    bool applies;            /* the top reads as its snapshot afterwards */
    bool no_snapshot;        /* is refused while the top has one */
    const char *copy;        /* an image that reads as the top did, once the command has succeeded */
    uint64_t size;           /* of the disk it is about afterwards; 0: as before */
    /* What it may say when it is given again: it was done the first time; or the bitmap has missed something, as after a crash. */
    const char *was_done, *lost;
} commands[] = {
    {.name = "commit", .line = "commit top.qcow2", .copy = "middle.qcow2", .no_snapshot = true},
    {.name = "commit-base", .line = "commit -b base.raw top.qcow2", .copy = "top.qcow2", .no_snapshot = true},
    {.name = "flatten", .line = "rebase -b  top.qcow2", .copy = "top.qcow2", .no_snapshot = true},
    {.name = "rebase", .line = "rebase -b other.raw -F raw top.qcow2", .copy = "top.qcow2", .no_snapshot = true},
    {.name = "grow", .line = "resize top.qcow2 512K", .size = 512 * 1024},
    {.name = "grow-short", .line = "resize short.qcow2 150K"},
    {.name = "shrink", .line = "resize --shrink plain.qcow2 128K", .size = 128 * 1024},
    {.name = "snapshot", .line = "snapshot -c new top.qcow2", .was_done = "of this name already"},
    {.name = "snapshot-apply", .line = "snapshot -a old top.qcow2", .applies = true},
    {.name = "snapshot-delete", .line = "snapshot -d old top.qcow2", .was_done = "no snapshot"},
    {.name = "bitmap", .line = "bitmap --add --enable --merge daily top.qcow2 new", .was_done = "there is a bitmap",
     .lost = "it cannot be used"},
    {.name = "bitmap-remove", .line = "bitmap --remove top.qcow2 daily", .was_done = "no bitmap"},
    {.name = "backup", .line = "backup --full --bitmap daily top.qcow2 new.qcow2", .copy = "new.qcow2", .was_done = "is there already",
     .lost = "can only be removed"},
    {.name = "backup-more", .line = "backup --bitmap daily -b full.qcow2 top.qcow2 new.qcow2", .copy = "new.qcow2",
     .was_done = "is there already", .lost = "make a full backup"},
    {.name = "convert", .line = "convert -O qcow2 -c top.qcow2 new.qcow2", .copy = "new.qcow2"},
    {.name = "convert-raw", .line = "convert -O raw top.qcow2 new.raw", .copy = "new.raw"},
    {.name = "create", .line = "create -f qcow2 -o preallocation=full new.qcow2 64K"},
    {.name = "repair", .line = "check -r all top.qcow2"},
};

/* Runs a line, whose words are parted by single blanks, two of them with an empty word in between; call `at` fails (0: none).
 * `ret_text`: what it said. */
static int run(const char *line, unsigned at, unsigned *ret_calls, char *ret_text, size_t size)
{
    char copy[256], program[] = "polder-img", *argv[ARGUMENTS_MAX] = {program}, *rest = copy;
    int argc = 1, out_fd = dup(1), err_fd = dup(2), nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    int said = memfd_create("said", MFD_CLOEXEC);
    snprintf(copy, sizeof copy, "%s", line);
    while (rest && argc < ARGUMENTS_MAX - 1)
        argv[argc++] = strsep(&rest, " ");
    fflush(stdout);
    dup2(nowhere, 1);
    dup2(said, 2);
    atomic_store(&calls, 0);
    atomic_store(&fail_at, at);
    int status = img_program(argc, argv);
    atomic_store(&fail_at, 0);
    *ret_calls = atomic_load(&calls);
    fflush(stdout);
    dup2(out_fd, 1);
    dup2(err_fd, 2);
    close(out_fd);
    close(err_fd);
    close(nowhere);
    ssize_t n = pread(said, ret_text, size - 1, 0);
    ret_text[n > 0 ? n : 0] = '\0';
    close(said);
    return status;
}

static void must(const char *line)
{
    char text[512];
    unsigned count;
    if (run(line, 0, &count, text, sizeof text) != 0) {
        printf("%s: %s\n", line, text);
        exit(2);
    }
}

/* ---- images ---- */

static const char *const images[] = {"base.raw",    "other.raw",  "middle.qcow2", "top.qcow2",
                                     "plain.qcow2", "full.qcow2", "short.qcow2",  NULL};
static const char *const made[] = {"new.qcow2", "new.qcow2.partial", "new.raw"};
static uint8_t before[DISK_SIZE], snapped[DISK_SIZE];
static uint8_t cut[DISK_SIZE]; /* what short.qcow2 reads: the beginning of a longer backing file, then zeroes */

struct access {
    struct block_node *node;
    enum block_op op;
    uint8_t *data;
    uint64_t offset, len;
    struct qcow2_check check;
    char why[128]; /* the first thing that the check calls an error */
};

static void keep_line(void *arg, const char *line)
{
    struct access *a = arg;
    if (strncmp(line, "ERROR", 5) == 0 && !a->why[0])
        snprintf(a->why, sizeof a->why, "%s", line);
}

static int access_node(void *arg)
{
    struct access *a = arg;
    if (a->op == BLOCK_WRITE)
        return block_do(a->node, BLOCK_WRITE, a->offset, a->data, a->len);
    a->check = (struct qcow2_check){.report = keep_line, .arg = a};
    int r = a->node->class == &block_qcow2 ? qcow2_check(a->node, QCOW2_CHECK_ONLY, &a->check, NULL) : 0;
    a->len = a->node->size < a->len ? a->node->size : a->len;
    return r < 0 ? r : block_do(a->node, BLOCK_READ, 0, a->data, a->len);
}

static int open_and(struct access *a, const char *path, struct err *err)
{
    struct block_options options = {
        .driver = strstr(path, ".raw") ? "raw" : "qcow2", .path = path, .fd = -1, .read_only = a->op == BLOCK_READ};
    int r = block_open(&options, &a->node, err);
    if (r < 0)
        return r;
    r = block_run_alone(a->node, access_node, a, err);
    block_close(a->node);
    return r;
}

static void scribble(const char *path, unsigned seed)
{
    static uint8_t data[12000];
    srandom(seed);
    for (unsigned i = 0; i < 12; i++) {
        struct access a = {.op = BLOCK_WRITE, .data = data, .len = 512 + (unsigned)random() % 20 * 512};
        a.offset = (unsigned)random() % ((DISK_SIZE - a.len) / 512) * 512;
        memset(data, 1 + (int)(random() % 255), a.len);
        assert(open_and(&a, path, NULL) == 0);
    }
}

static void fill_raw(const char *path, unsigned seed)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert(fd >= 0 && ftruncate(fd, BASE_SIZE) == 0);
    srandom(seed);
    for (off_t at = 0; at < BASE_SIZE; at += 10240) {
        uint32_t word = (uint32_t)random();
        for (off_t i = at; i < at + 6000 && i < BASE_SIZE; i += 4)
            assert(pwrite(fd, &word, 4, i) == 4);
    }
    close(fd);
}

static void read_whole(const char *path, uint8_t *data)
{
    struct access a = {.op = BLOCK_READ, .data = data, .len = DISK_SIZE};
    assert(open_and(&a, path, NULL) == 0);
}

static void make_images(void)
{
    fill_raw("base.raw", 1);
    fill_raw("other.raw", 2);
    must("create -f qcow2 -o cluster_size=4k -b base.raw -F raw middle.qcow2 256K");
    scribble("middle.qcow2", 3);
    must("create -f qcow2 -o cluster_size=4k -b middle.qcow2 -F qcow2 top.qcow2 256K");
    scribble("top.qcow2", 4);
    must("backup --full --bitmap daily top.qcow2 full.qcow2");
    must("snapshot -c old top.qcow2");
    read_whole("top.qcow2", snapped);
    scribble("top.qcow2", 5);
    read_whole("top.qcow2", before);
    must("convert -O qcow2 -o cluster_size=512 top.qcow2 plain.qcow2");
    must("create -f qcow2 -o cluster_size=4k -b other.raw -F raw short.qcow2 62K");
    struct access a = {.op = BLOCK_READ, .data = cut, .len = DISK_SIZE};
    assert(open_and(&a, "short.qcow2", NULL) == 0);
}

/* ---- judgement ---- */

/* NULL, or what is wrong with an image that must read as `wanted`, or as `other`. */
static const char *judge_image(const char *path, const uint8_t *wanted, const uint8_t *other, uint64_t len, char *text, size_t size)
{
    static uint8_t data[DISK_SIZE];
    struct err err = {0};
    struct access a = {.op = BLOCK_READ, .data = data, .len = len < DISK_SIZE ? len : DISK_SIZE};
    if (open_and(&a, path, &err) < 0) {
        snprintf(text, size, "%s: %s", path, err.message);
        return text;
    }
    bool same = !wanted || memcmp(data, wanted, a.len) == 0 || memcmp(data, other, a.len) == 0;
    if (same && !a.check.corruptions)
        return NULL;
    snprintf(text, size, "%s: %s", path, same ? a.why : "reads otherwise");
    return text;
}

static const char *judge(const struct command *c, bool done, char *text, size_t size)
{
    const uint8_t *wanted = c->applies && done ? snapped : before, *other = c->applies && !done ? snapped : wanted;
    const char *wrong = judge_image("top.qcow2", wanted, other, DISK_SIZE, text, size);
    if (!wrong)
        wrong = judge_image("middle.qcow2", NULL, NULL, DISK_SIZE, text, size);
    if (!wrong) /* what a smaller disk is to lose may be lost before it is smaller */
        wrong = judge_image("plain.qcow2", before, before, c->size ? c->size : DISK_SIZE, text, size);
    if (!wrong)
        wrong = judge_image("short.qcow2", cut, cut, DISK_SIZE, text, size);
    return !wrong && done && c->copy ? judge_image(c->copy, before, before, DISK_SIZE, text, size) : wrong;
}

static bool run_once(unsigned index, unsigned at, bool *ret_reached)
{
    static unsigned lost_count;
    const struct command *c = &commands[index];
    char text[512], why[256], again[512];
    unsigned count;
    for (unsigned i = 0; i < sizeof made / sizeof *made; i++)
        unlink(made[i]);
    if (c->no_snapshot)
        must("snapshot -d old top.qcow2");
    int status = run(c->line, at, &count, text, sizeof text);
    *ret_reached = count >= at;
    const char *said = strstr(text, "polder-img: "), *wrong = judge(c, status == 0, why, sizeof why);
    if (!wrong && status != 0 && (!said || strchr(said, '\n') != text + strlen(text) - 1))
        wrong = "it has not said so in one line";
    int second = wrong ? 0 : run(c->line, 0, &count, again, sizeof again);
    bool lost = second != 0 && c->lost && strstr(again, c->lost);
    if (second != 0 && !lost && !(c->was_done && strstr(again, c->was_done)))
        wrong = again;
    if (!wrong && status == 0 && second == 0 && c->was_done)
        wrong = "it said that it was done, and was not";
    lost_count = (at ? lost_count : 0) + lost;
    if (!wrong)
        wrong = judge(c, !lost, why, sizeof why);
    if (wrong)
        printf("%s, call %u, %s, fails: '%s': %s\n", c->name, at, at ? failed : "none", text, wrong);
    else if (!*ret_reached && lost_count)
        printf("%s: %u times a bitmap was lost\n", c->name, lost_count);
    return !wrong;
}

static const char *name_of(unsigned index)
{
    return index < sizeof commands / sizeof *commands ? commands[index].name : NULL;
}

int main(int argc, char **argv)
{
    const struct fault_test test = {.images = images, .make = make_images, .name = name_of, .run = run_once};
    return fault_test_run(&test, argc, argv);
}
