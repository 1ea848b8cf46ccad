/* Blobs: written to a temporary file while they are hashed, named when they are whole. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include "image/image_impl.h"

#define CLAIM_WAIT_NS 100000000 /* how often a waiter looks for a cancellation */

/* ---- writing ---- */

void blob_hash_text(EVP_MD_CTX *hash, char ret_digest[static IMAGE_DIGEST_SIZE])
{
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    EVP_DigestFinal_ex(hash, bytes, &length);
    memcpy(ret_digest, "sha256:", 7);
    for (unsigned i = 0; i < 32; i++)
        snprintf(ret_digest + 7 + 2 * i, 3, "%02x", bytes[i]);
}

int blob_writer_open(struct image_store *store, struct blob_writer *ret_writer, struct err *err)
{
    struct blob_writer writer = {.store = store, .fd = -1};
    snprintf(writer.name, sizeof writer.name, "%u", atomic_fetch_add(&store->tmp_next, 1));
    writer.hash = EVP_MD_CTX_new();
    if (!writer.hash || !EVP_DigestInit_ex(writer.hash, EVP_sha256(), NULL)) {
        EVP_MD_CTX_free(writer.hash);
        return err_set(err, ENOMEM, "hash of a blob");
    }
    writer.fd = openat(store->tmp_fd, writer.name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (writer.fd < 0) {
        EVP_MD_CTX_free(writer.hash);
        return err_set(err, errno, "make '%s/%s/%s'", store->dir, store->tmp_name, writer.name);
    }
    *ret_writer = writer;
    return 0;
}

int blob_writer_add(struct blob_writer *writer, const void *data, size_t len_bytes, struct err *err)
{
    EVP_DigestUpdate(writer->hash, data, len_bytes);
    for (size_t done = 0; done < len_bytes;) {
        ssize_t n = write(writer->fd, (const char *)data + done, len_bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, errno, "write to image store '%s'", writer->store->dir);
        done += (size_t)n;
    }
    writer->size_bytes += len_bytes;
    return 0;
}

int blob_writer_rewind(struct blob_writer *writer, struct err *err)
{
    if (ftruncate(writer->fd, 0) < 0 || lseek(writer->fd, 0, SEEK_SET) < 0)
        return err_set(err, errno, "truncate a blob in '%s'", writer->store->dir);
    EVP_DigestInit_ex(writer->hash, EVP_sha256(), NULL);
    writer->size_bytes = 0;
    return 0;
}

int blob_writer_finish(struct blob_writer *writer, char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    if (lseek(writer->fd, 0, SEEK_SET) < 0)
        return err_set(err, errno, "rewind a blob in '%s'", writer->store->dir);
    blob_hash_text(writer->hash, ret_digest);
    return 0;
}

int blob_writer_commit(struct blob_writer *writer, const char *digest, struct err *err)
{
    struct image_store *store = writer->store;
    if (fchmod(writer->fd, 0400) < 0 || fsync(writer->fd) < 0 ||
        renameat(store->tmp_fd, writer->name, store->blobs_fd, IMAGE_SHA256_HEX(digest)) < 0 || fsync(store->blobs_fd) < 0)
        return err_set(err, errno, "store blob %s in '%s'", digest, store->dir);
    writer->name[0] = '\0';
    return 0;
}

void blob_writer_park(struct blob_writer *writer)
{
    if (writer->fd >= 0)
        close(writer->fd);
    writer->fd = -1;
    EVP_MD_CTX_free(writer->hash);
    writer->hash = NULL;
}

int blob_writer_resume(struct blob_writer *writer, struct err *err)
{
    writer->fd = openat(writer->store->tmp_fd, writer->name, O_RDONLY | O_CLOEXEC);
    return writer->fd < 0 ? err_set(err, errno, "open '%s/%s'", writer->store->tmp_name, writer->name) : 0;
}

void blob_writer_close(struct blob_writer *writer)
{
    if (writer->name[0])
        unlinkat(writer->store->tmp_fd, writer->name, 0);
    blob_writer_park(writer);
}

void blob_digest(const void *data, size_t len_bytes, char ret_digest[static IMAGE_DIGEST_SIZE])
{
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    EVP_DigestInit_ex(hash, EVP_sha256(), NULL);
    EVP_DigestUpdate(hash, data, len_bytes);
    blob_hash_text(hash, ret_digest);
    EVP_MD_CTX_free(hash);
}

int blob_add_text(struct image_store *store, const char *text, size_t len_bytes, char ret_digest[static IMAGE_DIGEST_SIZE],
                  struct err *err)
{
    struct blob_writer writer;
    int ret = blob_writer_open(store, &writer, err);
    if (ret < 0)
        return ret;
    char digest[IMAGE_DIGEST_SIZE];
    ret = blob_writer_add(&writer, text, len_bytes, err);
    if (ret == 0)
        ret = blob_writer_finish(&writer, digest, err);
    if (ret == 0)
        ret = blob_writer_commit(&writer, digest, err);
    blob_writer_close(&writer);
    if (ret == 0)
        memcpy(ret_digest, digest, IMAGE_DIGEST_SIZE);
    return ret;
}

/* ---- reading ---- */

int image_blob_open(struct image_store *store, const char *digest, struct err *err)
{
    if (!image_digest_valid(digest))
        return err_say(err, EINVAL, "'%.80s' is no digest: sha256: and 64 hex digits are expected", digest);
    int fd = openat(store->blobs_fd, IMAGE_SHA256_HEX(digest), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT)
        return err_say(err, ENOENT, "blob %s is not in the image store: pull or import its image again", digest);
    return fd < 0 ? err_set(err, errno, "open blob %s", digest) : fd;
}

bool blob_here(struct image_store *store, const char *digest, uint64_t size_bytes)
{
    struct stat st;
    return fstatat(store->blobs_fd, IMAGE_SHA256_HEX(digest), &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
           (uint64_t)st.st_size == size_bytes;
}

static int read_all(int fd, char *text, size_t len_bytes, struct err *err)
{
    for (size_t done = 0; done < len_bytes;) {
        ssize_t n = read(fd, text + done, len_bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(err, n < 0 ? errno : EIO, "read a blob");
        done += (size_t)n;
    }
    return 0;
}

int blob_read_text(struct image_store *store, const char *digest, char **ret_text, size_t *ret_len, struct err *err)
{
    own_fd int fd = image_blob_open(store, digest, err);
    if (fd < 0)
        return fd;
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_set(err, errno, "blob %s", digest);
    if (st.st_size > IMAGE_JSON_MAX)
        return err_say(err, EINVAL, "blob %s has %lld bytes, too many for a manifest or a configuration", digest,
                       (long long)st.st_size);
    size_t length = (size_t)st.st_size;
    own_free char *text = malloc(length + 1);
    if (!text)
        return err_set(err, ENOMEM, "blob %s", digest);
    int ret = read_all(fd, text, length, err);
    if (ret < 0)
        return ret;
    text[length] = '\0';
    char found[IMAGE_DIGEST_SIZE];
    blob_digest(text, length, found);
    if (strcmp(found, digest) != 0)
        return err_say(err, EBADMSG, "blob %s is damaged: remove its images, prune, and pull or import them again", digest);
    *ret_text = TAKE(text);
    *ret_len = length;
    return 0;
}

/* ---- claims ---- */

struct blob_claim {
    struct blob_claim *next;
    char digest[IMAGE_DIGEST_SIZE];
};

static struct blob_claim **find_claim(struct image_store *store, const char *digest)
{
    struct blob_claim **at = &store->claims;
    while (*at && strcmp((*at)->digest, digest) != 0)
        at = &(*at)->next;
    return at;
}

static void wait_for_change(struct image_store *store)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += CLAIM_WAIT_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&store->claims_changed, &store->claims_lock, &until);
}

int blob_claim(struct image_store *store, const char *digest, struct image_meter *meter, struct err *err)
{
    struct blob_claim *claim = calloc(1, sizeof *claim);
    if (!claim)
        return err_set(err, ENOMEM, "blob %s", digest);
    snprintf(claim->digest, sizeof claim->digest, "%s", digest);
    int ret = 0;
    pthread_mutex_lock(&store->claims_lock);
    while (*find_claim(store, digest) && (ret = meter_check(meter, err)) == 0)
        wait_for_change(store);
    if (ret == 0) {
        claim->next = store->claims;
        store->claims = TAKE(claim);
    }
    pthread_mutex_unlock(&store->claims_lock);
    free(claim);
    return ret;
}

void blob_unclaim(struct image_store *store, const char *digest)
{
    pthread_mutex_lock(&store->claims_lock);
    struct blob_claim **at = find_claim(store, digest), *claim = *at;
    assert(claim);
    *at = claim->next;
    pthread_cond_broadcast(&store->claims_changed);
    pthread_mutex_unlock(&store->claims_lock);
    free(claim);
}
