/* Block nodes: disks as the guest's block device (and other nodes) see them.
 *
 * A node takes requests and completes them later, in the thread that runs its ring. Nodes may stack: a format or filter
 * submits requests of its own to the node below; only the lowest ones need a file descriptor.
 * Threads: open and close anywhere; after block_attach everything happens in the ring's thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include "base/err.h"
#include "block/ring.h"

struct block_node;
struct block_request;

#define BLOCK_SECTOR_SIZE 512u

enum block_op {
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_FLUSH,        /* what completed before is stable */
    BLOCK_DISCARD,      /* contents of the range become undefined */
    BLOCK_WRITE_ZEROES, /* reads as zeroes; the space may be given back when `may_unmap` */
};

/* Filled in by the submitter, which keeps it (and the memory of iov) alive until `done`. Offsets and lengths are
 * multiples of the node's block_size and inside the node: the submitter checks. */
struct block_request {
    enum block_op op;
    bool may_unmap;
    bool stable; /* WRITE, DISCARD, WRITE_ZEROES: on stable storage before it completes */
    uint64_t offset, len;
    struct iovec *iov; /* READ, WRITE: `len` bytes in all; as it was when `done` is called */
    unsigned iov_count;
    /* Once, in the ring's thread, possibly before block_submit returns. `result`: 0 or -errno. */
    void (*done)(struct block_request *request, int result);

    /* the serving node's */
    struct block_node *node;
    struct block_io io;
    uint64_t progress; /* bytes done so far */
    unsigned retries, stage;
    struct iovec whole; /* what *cut was before it was cut to its unfinished part */
    struct iovec *cut;
    struct iovec bounce;
};

struct block_options {
    const char *driver; /* NULL: "file" */
    const char *path;
    int fd; /* an open file instead of `path` (which then only names it), the node's once it is open; -1: open `path` */
    bool read_only;
    bool direct;        /* O_DIRECT: past the host's page cache */
};

struct block_class {
    const char *name;
    int (*open)(const struct block_options *options, struct block_node **ret_node, struct err *err);
    void (*close)(struct block_node *node);
    int (*attach)(struct block_node *node, struct block_ring *ring, struct err *err);
    void (*submit)(struct block_node *node, struct block_request *request);
};

/* First member of every node's struct. */
struct block_node {
    const struct block_class *class;
    struct block_ring *ring;
    uint64_t size;       /* bytes; a multiple of block_size */
    uint32_t block_size; /* unit and alignment of requests: 512, or 4096 where direct I/O asks for it */
    uint32_t physical_block_size, optimal_io_size;
    uint32_t memory_alignment; /* of iov bases and lengths; 1 when any will do */
    uint32_t discard_alignment;
    bool read_only, can_discard, can_write_zeroes;
};

extern const struct block_class block_file;
/* NULL-terminated. */
extern const struct block_class *const block_classes[];

/* Opens and locks an image: one writer, or any number of readers. */
must_check int block_open(const struct block_options *options, struct block_node **ret_node, struct err *err);
/* No request is in flight. NULL is fine. */
void block_close(struct block_node *node);
/* From now on the node is served by `ring`. */
must_check int block_attach(struct block_node *node, struct block_ring *ring, struct err *err);

static inline void block_submit(struct block_node *node, struct block_request *request)
{
    request->node = node;
    node->class->submit(node, request);
}
