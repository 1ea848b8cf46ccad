/* Unpacking a layer: what its files share. */
#pragma once

#include <archive.h>
#include <archive_entry.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "base/own.h"
#include "image/rootfs.h"

/* Numbers of inodes. An inode that a layer made or touched is in its set; numbers that the file system uses again can only be of
 * what this layer made. */
struct inode_set {
    uint64_t *slots; /* 0: free */
    size_t capacity, count;
};
must_check int inode_set_add(struct inode_set *set, uint64_t inode);
bool inode_set_has(const struct inode_set *set, uint64_t inode);

/* A layer being unpacked. One folder is kept open from entry to entry. */
struct unpack {
    int root_fd;
    uint64_t root_inode;
    struct rootfs_counts *counts;
    struct inode_set touched;
    int dir_fd;                    /* -1: none */
    char dir_path[ROOTFS_PATH_MAX + 1];
    struct timespec dir_times[2];  /* given back when it is left: it does not change by what is put into it */
};

/* ---- rootfs_path.c ---- */

/* "./a//b/" becomes "a/b"; the root "". -EINVAL with "..", too long or too deep. */
must_check int rootfs_path_clean(const char *raw, char ret_path[static ROOTFS_PATH_MAX + 1], struct err *err);
/* Where the last part begins; what is before it (without the slash) goes to `ret_dir`. */
const char *rootfs_path_split(const char *path, char ret_dir[static ROOTFS_PATH_MAX + 1]);
/* Opens what `path` is below the root, wherever links lead. Returns a descriptor or -errno. */
must_check int rootfs_open(int root_fd, const char *path, int flags);
/* Makes `path` the folder that is kept open, with the folders on the way that are missing. */
must_check int unpack_enter(struct unpack *unpack, const char *path, struct err *err);
void unpack_leave(struct unpack *unpack);

/* ---- rootfs_remove.c ---- */

/* Removes what is at `name` in the folder that is open, for something new. */
must_check int unpack_replace(struct unpack *unpack, const char *name);
/* Removes what lower layers have of `name` in the folder that is open: all of it, or what this layer did not touch. */
must_check int unpack_whiteout(struct unpack *unpack, const char *name);
/* The same of everything in that folder. */
must_check int unpack_opaque(struct unpack *unpack);

/* ---- rootfs_entry.c ---- */

/* Makes what the entry is, as `name` in the folder that is open ("": the root itself). */
must_check int unpack_entry(struct unpack *unpack, struct archive *archive, struct archive_entry *entry, const char *name,
                            struct err *err);
