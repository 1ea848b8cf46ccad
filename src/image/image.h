/* Images: a content-addressed store on disk, filled from and emptied to OCI registries and archives.
 *
 * The store's folder is an OCI image layout (image-spec v1.1, "image-layout"), which other tools can read as well:
 *     oci-layout            index.json            the tags: one descriptor each, its full reference in
 *     blobs/sha256/HEX      tmp/                  org.opencontainers.image.ref.name; replaced whole, under a lock
 * A blob appears under its name only when its bytes have been checked against its digest. A tag names the manifest of one
 * platform (linux/amd64), never an index. What no tag and no pin leads to goes with image_gc.
 *
 * References are docker's: "debian" is docker.io/library/debian:latest. Where an image that is here is meant, its manifest's
 * digest ("sha256:HEX") will do as well.
 *
 * Any thread may call anything, several processes may share a folder. Whatever a registry or an archive says is bounded and
 * checked; errors are -errno: -ENOENT no such image, -EINVAL bad input, -EBADMSG bytes that do not have their digest,
 * -EACCES refused by the registry, -ECANCELED by progress->cancelled. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

#define IMAGE_DIGEST_SIZE 72       /* "sha256:", 64 lower-case hex digits, NUL */
#define IMAGE_REF_SIZE 768         /* a full reference and its NUL */
#define IMAGE_LAYERS_MAX 256       /* of one image */
#define IMAGE_JSON_MAX (2u << 20)  /* bytes of a manifest, an index or a configuration */

/* Media type of the configuration of a disk image, whose one layer is the disk. */
#define IMAGE_DISK_CONFIG_TYPE "application/vnd.polder.disk.config.v1+json"

struct image_store;

/* ---- references ---- */

struct image_ref {
    char registry[256];   /* "docker.io", "localhost:5000" */
    char repository[256]; /* "library/debian" */
    char tag[129];        /* "latest"; empty beside a digest that came without one */
    char digest[IMAGE_DIGEST_SIZE]; /* or empty */
};

/* -EINVAL with the reason. */
must_check int image_ref_parse(const char *text, struct image_ref *ret_ref, struct err *err);
/* The one full form, "docker.io/library/debian:latest" or "…@sha256:HEX". */
void image_ref_format(const struct image_ref *ref, char ret_text[static IMAGE_REF_SIZE]);
/* As people write it: "debian:latest", "localhost:5000/x:1". */
void image_ref_short(const struct image_ref *ref, char ret_text[static IMAGE_REF_SIZE]);
/* "sha256:" and 64 lower-case hex digits, nothing else. */
bool image_digest_valid(const char *text);

/* ---- long work ---- */

/* Both may be NULL, as may a pointer to the whole; called from several threads, one at a time. */
struct image_progress {
    /* Bytes of `what` ("pull debian:latest"); total 0: not known. A few times a second. */
    void (*report)(void *context, const char *what, uint64_t done, uint64_t total);
    bool (*cancelled)(void *context);
    void *context;
};

/* How to reach a registry. All may be 0; a NULL pointer to the whole is the same. */
struct image_remote {
    bool insecure;        /* certificates are not verified, and http is spoken where https is not */
    const char *username; /* NULL: anonymous */
    const char *password;
    const char *ca_file;  /* PEM, instead of the system's */
};

/* ---- the store ---- */

/* Makes `dir` if it is missing (0700) and removes temporary files whose writers are gone. */
must_check int image_store_open(const char *dir, struct image_store **ret_store, struct err *err);
void image_store_close(struct image_store *store); /* NULL is fine; nothing may be running */
/* The folder's descriptor (the store's own), for what others keep beside the blobs: roots/. */
int image_store_dir_fd(const struct image_store *store);
const char *image_store_dir(const struct image_store *store);

/* A blob for reading, -ENOENT if it is not here. Returns a descriptor. */
must_check int image_blob_open(struct image_store *store, const char *digest, struct err *err);

/* ---- one image ---- */

struct image_blob {
    char digest[IMAGE_DIGEST_SIZE];
    uint64_t size_bytes;
    char media_type[128];
};

struct image {
    char ref[IMAGE_REF_SIZE]; /* full; empty when it was asked for by its digest */
    struct image_blob manifest, config;
    struct image_blob *layers; /* from the bottom up */
    size_t layer_count;
};

/* By reference or by the manifest's digest. */
must_check int image_get(struct image_store *store, const char *ref, struct image *ret_image, struct err *err);
void image_clear(struct image *image);

/* What an image says on how to run it. Lists end with NULL and are never NULL; texts are never NULL. */
struct image_config {
    char **entrypoint, **cmd, **env; /* env: "K=V" */
    char **exposed_ports;            /* "80/tcp" */
    char **volumes;                  /* absolute paths */
    char **labels;                   /* "K=V" */
    char **diff_ids;                 /* digests of the layers, uncompressed; as many as layers */
    char *user, *workdir, *stop_signal, *created_at, *architecture, *os;
};

must_check int image_config_get(struct image_store *store, const struct image *image, struct image_config *ret_config,
                                struct err *err);
void image_config_clear(struct image_config *config);

/* ---- tags ---- */

/* Array of {"ref" (short), "full_ref", "digest", "config_digest", "media_type", "kind": "oci"|"disk", "size_bytes",
 * "layer_count": N, "created_at", "tagged_at", "architecture", "os"}, by ref. One that does not say when it was made was
 * made when it got its name. An image whose blobs are damaged has "error"
 * instead of what could not be read. */
must_check int image_list(struct image_store *store, json_t **ret_images, struct err *err);
/* The same of one image, and "config" {"entrypoint", "cmd", "env", "user", "workdir", "stop_signal", "exposed_ports",
 * "volumes", "labels"} and "layers" [{"digest", "size_bytes", "media_type", "diff_id"}]. */
must_check int image_inspect(struct image_store *store, const char *ref, json_t **ret_image, struct err *err);
/* Another name for an image; a tag that was there moves. */
must_check int image_tag(struct image_store *store, const char *ref, const char *target, struct err *err);
/* Takes the tag away (all tags, if `ref` is a digest); the blobs go with image_gc. */
must_check int image_remove(struct image_store *store, const char *ref, struct err *err);

struct image_gc_result {
    uint64_t blobs, bytes; /* removed */
};

/* Removes blobs that neither a tag nor a pinned manifest leads to. `pins` are digests of manifests that instances use.
 * -EBUSY while another call writes to the store (a pull, an import): nothing was removed. */
must_check int image_gc(struct image_store *store, const char *const *pins, size_t pin_count,
                        struct image_gc_result *ret_result, struct err *err);

/* ---- registries (distribution-spec v1.1) ---- */

/* Fetches what is missing and tags it. `ret_digest`: of the manifest. */
must_check int image_pull(struct image_store *store, const char *ref, const struct image_remote *remote,
                          const struct image_progress *progress, char ret_digest[static IMAGE_DIGEST_SIZE],
                          struct err *err);
/* Sends the image `ref` to the registry and tag that `target` names (NULL: ref itself). */
must_check int image_push(struct image_store *store, const char *ref, const char *target, const struct image_remote *remote,
                          const struct image_progress *progress, struct err *err);

/* ---- archives ---- */

/* Reads a tar (compressed or not) that holds an OCI layout or is docker-archive ("docker save"), and tags its image `ref`;
 * NULL: as the archive names it. `fd` may be a pipe. `ret_ref`: the full reference. Of several images in one archive the
 * one for linux/amd64, or the first, is taken. */
must_check int image_import(struct image_store *store, int fd, const char *ref, const struct image_progress *progress,
                            char ret_ref[static IMAGE_REF_SIZE], struct err *err);
/* Writes a tar to `fd` that is both an OCI layout and a docker-archive: for docker load, podman load, skopeo. */
must_check int image_export(struct image_store *store, const char *ref, int fd, const struct image_progress *progress,
                            struct err *err);

/* ---- images made here ---- */

struct image_layer_source {
    int fd;                 /* from its position to its end; stays the caller's; a pipe will do */
    const char *media_type; /* NULL: a layer tar, whose compression (none, gzip, zstd) is seen from its first bytes */
};

/* Stores the layers as they are and makes manifest and configuration. `config`: an image configuration
 * (image-spec "config"); "rootfs" and what else must be there (architecture, os, created) are filled in. The configuration
 * of another kind of image has its own media type in `config_media_type` (NULL: an OCI image's) and is stored as it is. */
must_check int image_add(struct image_store *store, const char *ref, const struct image_layer_source *layers,
                         size_t layer_count, const json_t *config, const char *config_media_type,
                         const struct image_progress *progress, char ret_digest[static IMAGE_DIGEST_SIZE],
                         struct err *err);
