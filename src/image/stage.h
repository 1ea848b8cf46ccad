/* Inside the image floor: an archive's files, each in a temporary file with its digest, until it is known which are wanted. */
#pragma once

#include "image/image_impl.h"

#define STAGE_ENTRIES_MAX 8192
#define STAGE_PATH_MAX 512 /* bytes of a name; layouts' are below 100 */

struct staged {
    char *path;                /* cleaned: no "./", no "..", no empty part */
    char *link;                /* cleaned path of the entry that it stands for; NULL: a file */
    struct blob_writer writer; /* finished and parked */
    char digest[IMAGE_DIGEST_SIZE];
};

struct stage {
    struct image_store *store;
    struct staged *files;
    size_t count;
};

/* Reads the whole tar (gzip, zstd, xz, bzip2 or not) from `fd`. */
must_check int stage_read(struct stage *stage, int fd, struct image_meter *meter, struct err *err);
void stage_clear(struct stage *stage);
/* NULL if there is none. */
struct staged *stage_by_path(struct stage *stage, const char *path);
struct staged *stage_by_digest(struct stage *stage, const char *digest);
/* The whole of a file that is at most IMAGE_JSON_MAX bytes long; a NUL behind it. */
must_check int stage_text(struct staged *file, char **ret_text, struct err *err);
must_check int stage_layer_type(struct staged *file, const char **ret_type, struct err *err);
/* Makes a blob of it. */
must_check int stage_keep(struct staged *file, struct err *err);
