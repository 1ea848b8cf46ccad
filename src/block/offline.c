/* What is done to images where no ring serves them: reading before one runs, making new files, guessing formats. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/own.h"
#include "block/block.h"
#include "block/lock.h"

int block_run_alone(struct block_node *node, int (*fn)(void *arg), void *arg, struct err *err)
{
    struct block_ring *ring;
    int r = block_ring_create("sync", &ring, err);
    if (r < 0)
        return r;
    r = block_ring_start(ring, err);
    if (r == 0)
        r = block_attach(node, ring, err);
    if (r == 0)
        r = block_run(ring, fn, arg);
    node->ring = NULL;
    block_ring_free(ring);
    return r;
}

struct reading {
    struct block_node *node;
    uint64_t offset, len;
    void *buf;
};

static int read_range(void *arg)
{
    const struct reading *reading = arg;
    return block_do(reading->node, BLOCK_READ, reading->offset, reading->buf, reading->len);
}

int block_read_alone(struct block_node *node, uint64_t offset, void *buf, uint64_t len, struct err *err)
{
    struct reading reading = {node, offset, len, buf};
    int r = block_run_alone(node, read_range, &reading, err);
    return r < 0 ? err_set(err, -r, "disk '%s'", node->name) : 0;
}

int block_open_new(const char *path, struct err *err)
{
    own_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, errno, "'%s'", path);
    if (!S_ISREG(st.st_mode))
        return err_say(err, EINVAL, "'%s' is not a regular file", path);
    if (block_lock(fd, false) < 0)
        return err_say(err, EBUSY, "'%s' is in use by another machine or tool", path);
    return TAKE_FD(fd);
}

static const struct {
    const char *format, *suffix;
    int64_t at; /* negative: from the end */
    unsigned len;
    char magic[8];
} formats[] = {
    {"qcow2", ".qcow2", 0, 4, {'Q', 'F', 'I', (char)0xfb}},
    {"luks", ".luks", 0, 6, {'L', 'U', 'K', 'S', (char)0xba, (char)0xbe}},
    {"vdi", ".vdi", 0x40, 4, {0x7f, 0x10, (char)0xda, (char)0xbe}},
    {"vhd", ".vhd", -512, 8, {'c', 'o', 'n', 'e', 'c', 't', 'i', 'x'}},
    {"vhdx", ".vhdx", 0, 8, {'v', 'h', 'd', 'x', 'f', 'i', 'l', 'e'}},
    {"vmdk", ".vmdk", 0, 4, {'K', 'D', 'M', 'V'}},
    {"vmdk", ".vmdk", 0, 8, {'#', ' ', 'D', 'i', 's', 'k', ' ', 'D'}},
};

/* 1, 0 or -errno. */
static int has_magic(int fd, unsigned i)
{
    char there[8];
    off_t end = lseek(fd, 0, SEEK_END), at = formats[i].at < 0 ? end + formats[i].at : formats[i].at;
    ssize_t n = end < 0 || at < 0 ? 0 : pread(fd, there, formats[i].len, at);
    if (end < 0 || n < 0)
        return -errno;
    return n == (ssize_t)formats[i].len && memcmp(there, formats[i].magic, formats[i].len) == 0;
}

int block_guess_format(const char *path, const char **ret_format)
{
    own_fd int fd = fdname_open(path, O_RDONLY, 0);
    size_t len = strlen(path);
    int r = fd < 0 ? -errno : 0;
    for (unsigned i = 0; r == 0 && i < sizeof formats / sizeof *formats; i++) {
        size_t suffix = strlen(formats[i].suffix);
        bool named = len > suffix && strcmp(path + len - suffix, formats[i].suffix) == 0;
        if (named || i == 0)
            r = has_magic(fd, i);
        if (r > 0 && !named)
            return -EINVAL;
        if (r > 0) {
            *ret_format = formats[i].format;
            return 0;
        }
    }
    if (r == 0)
        *ret_format = "raw";
    return r;
}
