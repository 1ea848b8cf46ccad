/* tar archives as streams: ustar (POSIX.1-1988) with pax extended headers (POSIX.1-2001, "pax"), and of GNU's variants long
 * names and base-256 numbers when read. Everything is bounded: a name PATH_MAX, an extended header TAR_EXTENDED_MAX. */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

#define TAR_BLOCK 512
#define TAR_EXTENDED_MAX 65536u

struct tar_entry {
    char name[PATH_MAX]; /* as in the archive: not to be trusted */
    char link[PATH_MAX]; /* target of a symbolic link; of a hard link: a name in the archive */
    char type;           /* '0' file, '1' hard link, '2' symbolic link, '3' '4' devices, '5' directory, '6' FIFO */
    unsigned mode, uid, gid;
    unsigned major, minor;
    uint64_t size_bytes;
    int64_t mtime; /* seconds since 1970 */
};

/* Zero-initialized but for `read` and `arg`. */
struct tar_reader {
    ssize_t (*read)(void *arg, void *to, size_t len); /* as read(2) */
    void *arg;
    uint64_t left_bytes;    /* of the current entry's data */
    uint64_t padding_bytes; /* behind it */
};

/* The next entry: 1, 0 at the end of the archive, -EPROTO for what is none, -errno of read. Skips what is left of the one
 * before. */
must_check int tar_read_next(struct tar_reader *reader, struct tar_entry *ret_entry, struct err *err);
/* Data of the current entry: how many bytes, 0 at its end. */
must_check ssize_t tar_read_data(struct tar_reader *reader, void *to, size_t len, struct err *err);

/* Writes the header of an entry to `fd`; then follow size_bytes of data, then tar_write_padding(). */
must_check int tar_write_header(int fd, const struct tar_entry *entry, struct err *err);
must_check int tar_write_padding(int fd, uint64_t size_bytes, struct err *err);
must_check int tar_write_end(int fd, struct err *err);
must_check int tar_write_all(int fd, const void *data, size_t len, struct err *err);
