/* Volumes: disks that outlive instances. One pool, of kind `dir`: STATE/volumes/NAME.qcow2, each described by the store's
 * document volumes/NAME:
 *     {"name", "size_bytes", "format": "qcow2", "fs": "ext4"|"", "created_at",
 *      "snapshots": [{"name", "created_at"}], "used_by": [{"instance", "read_only"}]}
 *
 * A guest wrote what is in these files, so this process never reads them: the program polder-img does, as a child.
 * The file and its document cannot change in one step. Whatever instant the host dies at, volumes_reconcile brings them
 * together again: a file appears under its name only after its document is there, and goes only after its document went.
 *
 * Any thread may call anything; work on one volume is done one after another. Errors are -errno with a sentence: -ENOENT no
 * such volume or snapshot, -EEXIST the name is taken, -EBUSY in use, -EINVAL bad input, -ENOSPC the disk is full,
 * -ECANCELED by progress->cancelled. `audit` goes with the store's commit and may be NULL, as may `progress`. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "image/image.h"
#include "store/store.h"

#define VOLUME_NAME_MAX 63
#define VOLUME_SIZE_MIN (1u << 20)
#define VOLUME_SIZE_MAX (UINT64_C(64) << 40)
#define VOLUME_SNAPSHOTS_MAX 256

struct volumes;

/* `store` stays the caller's and must live longer. Makes STATE_DIR/volumes (0700) if missing. Reconcile once before use. */
must_check int volumes_open(struct store *store, const char *state_dir, struct volumes **ret_volumes, struct err *err);
void volumes_close(struct volumes *volumes); /* NULL is fine; nothing may be running */

/* Brings files and documents together: finishes or takes back what was under way, adopts files without a document, and
 * lets the document of a file that is gone say so ("error": TEXT). `ret_actions`: array of sentences of what was done. */
must_check int volumes_reconcile(struct volumes *volumes, json_t **ret_actions, struct err *err);

/* The documents, each with "used_bytes" (what the file takes on the host), by name. */
must_check int volumes_list(struct volumes *volumes, json_t **ret_list, struct err *err);
must_check int volume_get(struct volumes *volumes, const char *name, json_t **ret_volume, struct err *err);

/* A thin volume. `fs`: "ext4", or "" (or NULL) for an empty disk. The size is rounded up to 1 MiB. */
must_check int volume_create(struct volumes *volumes, const char *name, uint64_t size_bytes, const char *fs,
                             const struct store_audit *audit, struct err *err);
/* A copy of what the volume holds now, without its snapshots. -EBUSY while an instance writes to it. */
must_check int volume_clone(struct volumes *volumes, const char *source, const char *name,
                            const struct image_progress *progress, const struct store_audit *audit, struct err *err);
/* Larger only. The guest lets the file system grow (resize2fs). -EBUSY while an instance has it. */
must_check int volume_resize(struct volumes *volumes, const char *name, uint64_t size_bytes,
                             const struct store_audit *audit, struct err *err);
must_check int volume_remove(struct volumes *volumes, const char *name, const struct store_audit *audit,
                             struct err *err);

/* Inside of the image. -EBUSY while an instance has the volume. */
must_check int volume_snapshot_create(struct volumes *volumes, const char *name, const char *snapshot,
                                      const struct store_audit *audit, struct err *err);
must_check int volume_snapshot_restore(struct volumes *volumes, const char *name, const char *snapshot,
                                       const struct store_audit *audit, struct err *err);
must_check int volume_snapshot_remove(struct volumes *volumes, const char *name, const char *snapshot,
                                      const struct store_audit *audit, struct err *err);

/* Writes the volume to `fd` (a pipe will do) as "raw" or "qcow2" (without its snapshots). -EBUSY while it is written to. */
must_check int volume_export(struct volumes *volumes, const char *name, const char *format, int fd,
                             const struct image_progress *progress, struct err *err);
/* A new volume from the image that `fd` (a pipe will do) yields up to its end. `format`: raw, qcow2, vmdk, vhd, vhdx, vdi;
 * never guessed: a raw disk may hold whatever its guest wrote. */
must_check int volume_import(struct volumes *volumes, const char *name, const char *format, int fd,
                             const struct image_progress *progress, const struct store_audit *audit, struct err *err);

/* Notes in the document that the instance (its id) uses the volume, and yields the image's path (the caller frees it).
 * A volume has one instance that writes, or any number that read: else -EBUSY with a sentence that names the other.
 * Doing it again for the same instance is fine. */
must_check int volume_attach(struct volumes *volumes, const char *name, const char *instance, bool read_only,
                             char **ret_path, struct err *err);
/* Fine if the instance does not have it, or the volume is gone. */
must_check int volume_detach(struct volumes *volumes, const char *name, const char *instance, struct err *err);

/* A writable root disk: a thin qcow2 of `size_bytes` with an empty ext4, at `path` (which must not exist). */
must_check int volume_root_create(struct volumes *volumes, const char *path, uint64_t size_bytes, struct err *err);
