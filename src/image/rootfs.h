/* Root file systems of images: what layers hold becomes one read-only erofs image, shared by all instances of the image
 * (DIR/roots/HEX.erofs, HEX of the manifest's digest), made once and used by any number of processes.
 *
 * Layers are foreign. They are unpacked in order by polder-unpack (src/unpack), a jailed program that has nothing but a new
 * folder as its root, the layers' descriptors and the capabilities to set owners; each name is moreover resolved below that
 * folder by the kernel (openat2, RESOLVE_IN_ROOT): symbolic links, absolute or not, lead within it, and ".." is refused.
 * Whiteouts take away what lower layers have (OCI image-spec, "Representing Changes"). Device nodes are left out: the guest's
 * kernel makes its own. Of extended attributes user.* and security.capability are kept. Whoever exceeds the bounds below is
 * told which.
 *
 * Any thread may call anything. */
#pragma once

#include <stdint.h>
#include "base/err.h"
#include "image/image.h"

#define ROOTFS_ENTRIES_MAX 2000000u            /* of all layers of an image */
#define ROOTFS_BYTES_MAX (UINT64_C(64) << 30)    /* of files, their holes included: they are not holes in the erofs image */
#define ROOTFS_PATH_MAX 4095u                    /* bytes of a name, of a link's target */
#define ROOTFS_DEPTH_MAX 256u                    /* folders below one another */
#define ROOTFS_XATTRS_MAX 64u                    /* of one entry */
#define ROOTFS_XATTR_BYTES_MAX 65536u            /* of one attribute */

/* The erofs image of `ref`, made now if it is not there. `ret_path` (the caller frees it) is in the store's folder. Needs
 * root: files get the owners that the layers say. */
must_check int image_root(struct image_store *store, const char *ref, const struct image_progress *progress,
                          char **ret_path, char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err);
/* Removes root file systems of images that are not in the store any more, and what work that broke off left behind. Machines
 * that run on one keep it until they end. */
must_check int image_roots_prune(struct image_store *store, uint64_t *ret_bytes, struct err *err);

struct rootfs_counts {
    uint64_t entries, bytes;
};
/* Unpacks one layer (a tar, not compressed or by gzip or zstd, from `fd`) over what is below `root_fd`. Counts go up to the
 * bounds above over all layers. -EINVAL names the entry that was refused; what was unpacked before it stays. */
must_check int rootfs_unpack(int root_fd, int fd, struct rootfs_counts *counts, struct err *err);
/* Removes what `name` in `dir_fd` is, with all that is in it. 0 also when there is nothing. */
must_check int rootfs_remove(int dir_fd, const char *name);

struct image_debian {
    const char *suite;           /* "bookworm" */
    const char *const *packages; /* besides the minimal system; ends with NULL; may be NULL */
    const char *mirror;          /* NULL: the host's own apt sources */
};
/* A Debian system, made by mmdebstrap, as the image `ref` with the command "bash". */
must_check int image_build_debian(struct image_store *store, const char *ref, const struct image_debian *debian,
                                  const struct image_progress *progress, char ret_digest[static IMAGE_DIGEST_SIZE],
                                  struct err *err);

/* An image of kind "disk" (IMAGE_DISK_CONFIG_TYPE): configuration {"cmdline", "disk_bytes", "architecture", "os"}; its layers
 * are known by their types. */
#define IMAGE_DISK_LAYER_TYPE "application/vnd.polder.disk.layer.v1.qcow2"
#define IMAGE_DISK_KERNEL_TYPE "application/vnd.polder.disk.kernel.v1"
#define IMAGE_DISK_INITRD_TYPE "application/vnd.polder.disk.initrd.v1"

struct image_disk {
    int fd;             /* of the disk's image, to its end; a pipe will do */
    const char *format; /* raw, qcow2, vmdk, vhd, vhdx, vdi; never guessed */
    int kernel_fd;      /* -1: kernel and initrd are taken from the disk's own /boot, on ext2, ext3 or ext4 */
    int initrd_fd;      /* -1 beside a kernel: none */
    const char *cmdline; /* NULL: "root=" of the partition with the system, "ro console=ttyS0" */
};
/* What reads the foreign disk (polder-img, debugfs) runs as nobody, in a folder that holds that disk alone. */
must_check int image_import_disk(struct image_store *store, const char *ref, const struct image_disk *disk,
                                 const struct image_progress *progress, char ret_digest[static IMAGE_DIGEST_SIZE],
                                 struct err *err);

struct image_disk_parts {
    char disk[IMAGE_DIGEST_SIZE], kernel[IMAGE_DIGEST_SIZE], initrd[IMAGE_DIGEST_SIZE]; /* digests of blobs; initrd may be "" */
    char cmdline[2048];
    uint64_t disk_bytes; /* what the guest sees of it */
};
/* -EINVAL when the image is not of kind "disk". */
must_check int image_disk_parts(struct image_store *store, const char *ref, struct image_disk_parts *ret_parts,
                                struct err *err);
