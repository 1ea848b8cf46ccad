/* What a layer's bytes are: its compression, and the digest of the tar within. */
#include <archive.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include "image/image_impl.h"

int layer_media_type(int fd, const char **ret_type, struct err *err)
{
    unsigned char magic[4] = {0};
    if (pread(fd, magic, sizeof magic, 0) < 0)
        return err_set(err, errno, "read a layer");
    if (magic[0] == 0x1f && magic[1] == 0x8b)
        *ret_type = MEDIA_OCI_LAYER "+gzip";
    else if (!memcmp(magic, "\x28\xb5\x2f\xfd", 4))
        *ret_type = MEDIA_OCI_LAYER "+zstd";
    else
        *ret_type = MEDIA_OCI_LAYER;
    return 0;
}

/* libarchive's raw format: the bytes that come out of the filter. */
static int open_raw(struct archive *archive, int fd, struct err *err)
{
    archive_read_support_filter_gzip(archive);
    archive_read_support_filter_zstd(archive);
    archive_read_support_filter_none(archive);
    archive_read_support_format_raw(archive);
    archive_read_support_format_empty(archive);
    struct archive_entry *entry;
    if (archive_read_open_fd(archive, fd, IMAGE_IO_SIZE) != ARCHIVE_OK)
        return err_say(err, EINVAL, "layer: %.150s", archive_error_string(archive));
    int ret = archive_read_next_header(archive, &entry);
    if (ret != ARCHIVE_OK && ret != ARCHIVE_EOF)
        return err_say(err, EINVAL, "layer: %.150s", archive_error_string(archive));
    return ret == ARCHIVE_OK;
}

static int hash_raw(struct archive *archive, EVP_MD_CTX *hash, struct image_meter *meter, struct err *err)
{
    const void *data;
    size_t length;
    la_int64_t offset;
    int ret;
    while ((ret = archive_read_data_block(archive, &data, &length, &offset)) == ARCHIVE_OK) {
        EVP_DigestUpdate(hash, data, length);
        int cancelled = meter_check(meter, err);
        if (cancelled < 0)
            return cancelled;
    }
    return ret == ARCHIVE_EOF ? 0 : err_say(err, EINVAL, "layer: %.150s", archive_error_string(archive));
}

int layer_diff_id(int fd, struct image_meter *meter, char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    struct archive *archive = archive_read_new();
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    int ret = archive && hash && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) ? 0 : err_set(err, ENOMEM, "layer");
    if (ret == 0)
        ret = open_raw(archive, fd, err);
    if (ret > 0)
        ret = hash_raw(archive, hash, meter, err);
    if (ret == 0)
        blob_hash_text(hash, ret_digest);
    EVP_MD_CTX_free(hash);
    archive_read_free(archive);
    return ret;
}
