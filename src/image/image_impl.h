/* Inside the image floor: the store's state, blobs being written, manifests, progress. */
#pragma once

#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include "base/own.h"
#include "image/image.h"

#define IMAGE_SHA256_HEX(digest) ((digest) + 7) /* behind "sha256:" */
#define IMAGE_IO_SIZE (256u << 10)              /* bytes of one read or write of a blob */

struct blob_claim;

struct image_store {
    char *dir;
    int dir_fd, blobs_fd; /* blobs_fd: blobs/sha256 */
    char tmp_name[32];    /* "tmp/N": this handle's own folder, locked while the handle lives */
    int tmp_fd;
    atomic_uint tmp_next;
    pthread_mutex_t claims_lock;
    pthread_cond_t claims_changed;
    struct blob_claim *claims; /* digests that some thread is fetching */
};

/* ---- store.c ---- */

/* Shared while blobs are added or read, so that image_gc keeps away; returns a descriptor to close. */
must_check int image_store_use(struct image_store *store, struct err *err);
/* The same lock, exclusively: -EBUSY while anyone uses the store. */
must_check int image_store_use_alone(struct image_store *store, struct err *err);

/* ---- progress.c ---- */

struct image_meter {
    const struct image_progress *progress; /* may be NULL */
    const char *what;
    pthread_mutex_t lock;
    uint64_t done, total;
    int64_t reported_ms;
    atomic_bool stopped; /* by the first error of parallel work */
};

void meter_init(struct image_meter *meter, const struct image_progress *progress, const char *what, uint64_t total);
void meter_end(struct image_meter *meter);
void meter_total(struct image_meter *meter, uint64_t total);
/* Bytes that were done, or are to be done again (negative). */
void meter_add(struct image_meter *meter, int64_t bytes);
bool meter_cancelled(struct image_meter *meter);
/* -ECANCELED once it was. */
must_check int meter_check(struct image_meter *meter, struct err *err);
/* Sleeps, but not past a cancellation. */
void meter_sleep(struct image_meter *meter, unsigned milliseconds);

/* ---- parallel.c ---- */

typedef int (*parallel_fn)(void *context, size_t index, struct err *err);
/* Calls `fn` for 0..count-1 from a few threads. The first error stops `meter`, so that the others end early, and is returned. */
must_check int parallel_run(parallel_fn fn, void *context, size_t count, struct image_meter *meter, struct err *err);

/* ---- blob.c ---- */

/* Bytes on their way to become a blob. Thread: one at a time. */
struct blob_writer {
    struct image_store *store;
    int fd; /* -1: none */
    char name[16]; /* in the store's own tmp folder */
    EVP_MD_CTX *hash;
    uint64_t size_bytes;
};

must_check int blob_writer_open(struct image_store *store, struct blob_writer *ret_writer, struct err *err);
must_check int blob_writer_add(struct blob_writer *writer, const void *data, size_t len_bytes, struct err *err);
/* Forgets what was written. */
must_check int blob_writer_rewind(struct blob_writer *writer, struct err *err);
/* No more will be added; says what it is. */
must_check int blob_writer_finish(struct blob_writer *writer, char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err);
/* Gives a finished one its name in blobs/, durably. */
must_check int blob_writer_commit(struct blob_writer *writer, const char *digest, struct err *err);
/* A finished one without its descriptor, so that there can be many; and with it again, to read and to commit. */
void blob_writer_park(struct blob_writer *writer);
must_check int blob_writer_resume(struct blob_writer *writer, struct err *err);
/* Drops what was not committed. */
void blob_writer_close(struct blob_writer *writer);

/* Whether it is here, with that size. */
bool blob_here(struct image_store *store, const char *digest, uint64_t size_bytes);
/* A blob of at most IMAGE_JSON_MAX bytes as text (with a NUL behind), its digest checked. Free with free. */
must_check int blob_read_text(struct image_store *store, const char *digest, char **ret_text, size_t *ret_len, struct err *err);
/* Stores a text that was made or fetched here. */
must_check int blob_add_text(struct image_store *store, const char *text, size_t len_bytes,
                             char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err);
/* Ends a SHA-256. */
void blob_hash_text(EVP_MD_CTX *hash, char ret_digest[static IMAGE_DIGEST_SIZE]);
void blob_digest(const void *data, size_t len_bytes, char ret_digest[static IMAGE_DIGEST_SIZE]);

/* One thread of the process fetches a blob; others that want the same wait for it. */
must_check int blob_claim(struct image_store *store, const char *digest, struct image_meter *meter, struct err *err);
void blob_unclaim(struct image_store *store, const char *digest);

/* ---- json.c ---- */

/* Parses a whole text of at most IMAGE_JSON_MAX bytes; `what` ("manifest") begins the message. */
must_check int image_json_parse(const char *text, size_t len_bytes, const char *what, json_t **ret_json, struct err *err);
/* A member that is a string, else "". */
const char *image_json_string(const json_t *object, const char *key);

static inline void own_json_cleanup(json_t **json)
{
    json_decref(*json);
}
#define own_json __attribute__((cleanup(own_json_cleanup)))

/* ---- manifest.c ---- */

#define MEDIA_OCI_INDEX "application/vnd.oci.image.index.v1+json"
#define MEDIA_OCI_MANIFEST "application/vnd.oci.image.manifest.v1+json"
#define MEDIA_OCI_CONFIG "application/vnd.oci.image.config.v1+json"
#define MEDIA_DOCKER_INDEX "application/vnd.docker.distribution.manifest.list.v2+json"
#define MEDIA_DOCKER_MANIFEST "application/vnd.docker.distribution.manifest.v2+json"
#define MEDIA_DOCKER_CONFIG "application/vnd.docker.container.image.v1+json"
#define MEDIA_OCI_LAYER "application/vnd.oci.image.layer.v1.tar"

enum manifest_kind { MANIFEST_IMAGE, MANIFEST_INDEX };

/* What a text is; -EINVAL if it is neither, or could be taken for both. */
must_check int manifest_classify(const json_t *manifest, enum manifest_kind *ret_kind, struct err *err);
/* Descriptors of the configuration and the layers; `ret_image`'s manifest is the caller's to fill. */
must_check int manifest_parse(const json_t *manifest, struct image *ret_image, struct err *err);
/* The media type that a manifest gives itself, else OCI's. */
const char *manifest_media_type(const json_t *manifest);
/* The entry of an index for linux/amd64; -ENOENT if it has none. */
must_check int manifest_choose(const json_t *index, struct image_blob *ret_blob, struct err *err);
must_check int descriptor_parse(const json_t *descriptor, struct image_blob *ret_blob, struct err *err);
/* {"mediaType", "digest", "size"} */
json_t *descriptor_json(const struct image_blob *blob);
/* A manifest of the image's configuration and layers, stored: fills in image->manifest. */
must_check int manifest_make(struct image_store *store, struct image *image, struct err *err);
/* From a tag or a digest over indexes to the manifest for this platform. `fetch` gets one text (freed by the caller), checks
 * that it has the digest if `version` is one, and says its digest. `ret_text`: the manifest's; image->manifest is filled in. */
typedef int (*manifest_fetch_fn)(void *context, const char *version, char **ret_text, size_t *ret_len,
                                 char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err);
must_check int manifest_find(manifest_fetch_fn fetch, void *context, const char *version, struct image *ret_image, char **ret_text,
                             struct err *err);
/* "oci", "disk" or NULL: what a configuration of that type describes. */
const char *manifest_config_kind(const char *media_type);
/* The manifest with that digest, and its parts. */
must_check int manifest_load(struct image_store *store, const char *digest, struct image *ret_image, struct err *err);

/* ---- config.c ---- */

must_check int image_config_parse(const json_t *json, struct image_config *ret_config, struct err *err);
/* That a configuration is for this platform and knows as many layers as the image has. */
must_check int image_config_check(struct image_store *store, const struct image *image, struct err *err);

/* ---- tags.c ---- */

/* All tags: an array of descriptors as in index.json. */
must_check int tags_load(struct image_store *store, json_t **ret_tags, struct err *err);
/* `ref` is full. */
must_check int tags_set(struct image_store *store, const char *ref, const struct image_blob *manifest, struct err *err);
/* The full form of a name that a new image gets: one without a digest. */
must_check int image_ref_tag_form(const char *ref, char ret_full[static IMAGE_REF_SIZE], struct err *err);
/* A tag's full reference, and when it was set. */
const char *tag_ref(const json_t *tag);
const char *tag_time(const json_t *tag);

/* ---- layer.c ---- */

/* The media type of a layer by its first bytes; of any other file than tar, gzip and zstd: tar. */
must_check int layer_media_type(int fd, const char **ret_type, struct err *err);
/* The digest of what a layer unpacks to. */
must_check int layer_diff_id(int fd, struct image_meter *meter, char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err);
