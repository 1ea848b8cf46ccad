/* Block nodes: disks as their users (a guest's block device, a tool, a server, other nodes) see them.
 *
 * A node takes requests and completes them later, in the thread that runs its ring: any number may be in flight, none has
 * a thread of its own. Nodes may stack: a format or filter submits requests of its own to the node below; only the lowest
 * ones need a file descriptor. What takes many steps inside a node runs in a fiber (fiber.h) of the ring's thread.
 * Threads: open and close anywhere, and they may wait for I/O; after block_attach everything happens in the ring's
 * thread. Between requests a node does nothing, so that it may be attached to another ring or closed. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include "base/err.h"
#include "block/ring.h"

struct block_node;
struct block_request;
struct block_key;

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
    bool fast;   /* WRITE_ZEROES: -ENOTSUP rather than writing zeroes as data */
    bool compress; /* WRITE: whole clusters, to be stored compressed where the format can; -ENOTSUP where it cannot */
    uint64_t offset, len;
    struct iovec *iov; /* READ, WRITE: `len` bytes in all; as it was when `done` is called */
    unsigned iov_count;
    uint64_t zeroes; /* READ: bytes that were found to be zeroes without reading them are added here */
    /* Once, in the ring's thread, possibly before block_submit returns. `result`: 0 or -errno. */
    void (*done)(struct block_request *request, int result);
    void *user; /* the submitter's */

    /* the serving node's */
    struct block_node *node;
    struct block_io io;
    uint64_t progress; /* bytes done so far */
    unsigned retries, stage;
    struct iovec whole; /* what *cut was before it was cut to its unfinished part */
    struct iovec *cut;
    struct iovec bounce;
    struct block_request *next;
    unsigned pending; /* parts in flight, and one for the submission itself */
    int result;
};

/* What a range holds, as far as it holds the same. */
struct block_extent {
    uint64_t len;
    bool present;    /* this node or one of its backing chain says what is here */
    bool beyond;     /* none does, and a backing file ends before it: zeroes, whatever those below that one have */
    bool data;       /* ... and has it stored */
    bool zero;       /* reads as zeroes */
    bool compressed;
    bool has_offset; /* stored as it is, from `offset` on, in the file `name` */
    uint64_t offset;
    unsigned depth;  /* 0: this image, 1: its backing image, ... */
    const char *name;
};

struct block_options {
    const char *driver; /* name of a class, or "raw"; NULL: "file" */
    const char *path;
    int fd; /* an open file instead of `path` (which then only names it), the node's once it is open; -1: open `path` */
    bool read_only;
    bool direct;        /* O_DIRECT: past the host's page cache */
    bool below;         /* file: any length, grows by writes, zeroes behind its end: what formats stand on */
    bool no_backing;    /* qcow2: read nothing from the backing file, and do not open it */
    const char *snapshot; /* qcow2, read-only: the disk as it was at this internal snapshot; NULL: as it is */
    /* qcow2: NULL or NULL-terminated: the backing chain, nearest first, instead of what the images name; with their formats */
    const char *const *backing;
    const char *base;   /* qcow2: the backing chain ends before this file, which is not opened; NULL: nowhere */
    bool repair;        /* qcow2: open for repair even what is marked as damaged */
    const struct block_key *key; /* of encrypted images (crypt/key.h); the caller's, used only by block_open */
    bool no_key;        /* encrypted images open without a key: all but their data can be looked at */
    /* NULL or NULL-terminated: folders besides the image's own in which backing and data files may lie */
    const char *const *allow_dirs;
    unsigned depth;     /* of this image in its chain; for nodes that open others */
};

struct block_class {
    const char *name;
    int (*open)(const struct block_options *options, struct block_node **ret_node, struct err *err);
    void (*close)(struct block_node *node);
    int (*attach)(struct block_node *node, struct block_ring *ring, struct err *err);
    void (*submit)(struct block_node *node, struct block_request *request);
    /* Optional, in a fiber: what the range holds; len > 0 and inside the node. NULL: all is data. */
    int (*status)(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent);
    /* Optional, in a fiber: whether the range is dirty in the named bitmap, as far as it is the same throughout; -ENOENT. */
    int (*bitmap_status)(struct block_node *node, const char *name, uint64_t offset, uint64_t len, uint64_t *ret_len, bool *ret_dirty);
    /* Optional, in a fiber, with no request in flight: a new size in bytes, a multiple of block_size. */
    int (*resize)(struct block_node *node, uint64_t size, struct err *err);
    /* In a fiber, with no request in flight: writes back what is only in memory; from then on the node is read-only, and
     * others may open its files for reading. */
    int (*freeze)(struct block_node *node);
    /* In a fiber: a node that was opened read-only, or frozen, is written from now on. -EBUSY when others have it open. */
    int (*thaw)(struct block_node *node, struct err *err);
    /* Optional, in a fiber: ends what the node does between requests. */
    void (*stop)(struct block_node *node);
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
    char *name; /* path, for messages and maps; owned */
};

extern const struct block_class block_file, block_luks, block_memory, block_nbd, block_null, block_qcow2, block_vdi, block_vhd, block_vhdx,
    block_vmdk;
/* What block_open finds by name, NULL-terminated. block_nbd is not among them: it brings libraries for the network, which only
 * programs that open it by itself are to have. */
extern const struct block_class *const block_classes[];

/* NULL when there is none of this name. */
const struct block_class *block_find_class(const char *name);
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

/* ---- In fibers: requests that wait ---- */

/* 0 or -errno. `buf` has `len` bytes for READ and WRITE and is NULL otherwise. */
int block_do(struct block_node *node, enum block_op op, uint64_t offset, void *buf, uint64_t len);
/* The same for a request that the caller has filled in (all but `done`). */
int block_do_request(struct block_node *node, struct block_request *request);
int block_status(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent);
must_check int block_resize(struct block_node *node, uint64_t size, struct err *err);
int block_bitmap_status(struct block_node *node, const char *name, uint64_t offset, uint64_t len, uint64_t *ret_len,
                        bool *ret_dirty);

/* Outside of fibers, in the ring's thread: runs fn(arg) in a fiber and the ring until it has ended. Returns what it did,
 * or -ENOMEM. */
int block_run(struct block_ring *ring, int (*fn)(void *arg), void *arg);

/* ---- Without a ring of one's own; not in fibers ---- */

/* Runs fn(arg) in a fiber while a ring made for it serves the node, which then has none. Returns what it did. */
must_check int block_run_alone(struct block_node *node, int (*fn)(void *arg), void *arg, struct err *err);
/* One read, aligned as the node wants it. */
must_check int block_read_alone(struct block_node *node, uint64_t offset, void *buf, uint64_t len, struct err *err);
/* A regular file to be overwritten by an image, made when it is not there and locked: nobody else uses it. A descriptor. */
must_check int block_open_new(const char *path, struct err *err);

/* ---- Formats ---- */

/* True for the URI of an NBD export (nbd://, nbds://, nbd+unix://, nbds+unix://), which block_nbd opens. Only for
 * names that come from the user, never for one that an image holds. */
bool block_is_nbd_uri(const char *path);

/* What format a file has whose user states none: the one that its name says (.qcow2, .luks, .vmdk, ...) when its header agrees,
 * else "raw". -EINVAL, not sure: the header says qcow2 and the name does not; a guest that owns a raw disk can write such a
 * header, so believing it would let the guest name host files to read. Another -errno: the header cannot be read. */
must_check int block_guess_format(const char *path, const char **ret_format);
