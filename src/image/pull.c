/* Pulling: the manifest for this platform, then configuration and layers side by side, each going on where a broken
 * connection left it; the tag last. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "image/registry_impl.h"

#define ACCEPT MEDIA_OCI_INDEX ", " MEDIA_OCI_MANIFEST ", " MEDIA_DOCKER_INDEX ", " MEDIA_DOCKER_MANIFEST
#define FIRST_DELAY_MS 200
#define PROGRESS_BYTES (1u << 20) /* that a try must bring to be no failure */

struct pull {
    struct image_store *store;
    struct registry registry;
    struct image_meter meter;
    struct image image;
    char *manifest; /* its text */
};

/* ---- manifests ---- */

struct search {
    struct pull *pull;
    struct http http;
};

static int fetch_manifest(void *context, const char *version, char **ret_text, size_t *ret_len,
                          char digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    struct search *search = context;
    struct registry *registry = &search->pull->registry;
    char path[256];
    struct http_response response;
    snprintf(path, sizeof path, "manifests/%s", version);
    struct http_request request = {.method = "GET", .url = path, .accept = ACCEPT};
    int ret = registry_call(registry, &search->http, &request, &response, err);
    if (ret < 0)
        return ret;
    blob_digest(response.body ? response.body : "", response.body_len, digest);
    const char *expected = image_digest_valid(version) ? version : response.digest;
    if (response.status != 200)
        ret = registry_refused(registry, &response, "pull", err);
    else if (*expected && strcmp(digest, expected) != 0)
        ret = err_say(err, EBADMSG, "the registry sends a manifest that is not %s", expected);
    if (ret == 0) {
        *ret_text = TAKE(response.body);
        *ret_len = response.body_len;
    }
    http_response_clear(&response);
    return ret;
}

/* ---- blobs ---- */

/* One request for what is missing: 1 when it should be tried again. */
static int fetch_rest(struct pull *pull, struct http *http, const struct image_blob *blob, struct blob_writer *writer, struct err *err)
{
    char path[16 + IMAGE_DIGEST_SIZE];
    snprintf(path, sizeof path, "blobs/%s", blob->digest);
    struct http_request request = {.method = "GET", .url = path, .writer = writer, .writer_max = blob->size_bytes};
    struct http_response response;
    int ret = registry_call(&pull->registry, http, &request, &response, err);
    if (ret == -ECONNRESET)
        return 1;
    if (ret < 0)
        return ret;
    if (response.status == 200 || response.status == 206) {
        ret = writer->size_bytes < blob->size_bytes
                  ? err_say(err, EBADMSG, "the registry sends fewer bytes of blob %s than it has", blob->digest)
                  : 0;
    } else {
        ret = registry_refused(&pull->registry, &response, "pull", err);
        if (response.status == 429 || response.status >= 500)
            ret = 1;
    }
    http_response_clear(&response);
    return ret;
}

static int fetch_into(struct pull *pull, struct http *http, const struct image_blob *blob, struct blob_writer *writer, struct err *err)
{
    unsigned delay_ms = FIRST_DELAY_MS, tries = HTTP_TRIES;
    int ret = 1;
    while (ret == 1) {
        uint64_t before = writer->size_bytes;
        ret = fetch_rest(pull, http, blob, writer, err);
        if (ret != 1)
            break;
        if (writer->size_bytes >= before + PROGRESS_BYTES) { /* the line is bad, but something comes */
            delay_ms = FIRST_DELAY_MS;
        } else if (--tries == 0) {
            return err_ctx(err, "after %d tries", HTTP_TRIES);
        }
        ret = writer->size_bytes == blob->size_bytes ? 0 : 1; /* it broke behind the last byte */
        if (ret == 1)
            meter_sleep(&pull->meter, delay_ms);
        delay_ms *= 2;
    }
    char digest[IMAGE_DIGEST_SIZE];
    if (ret == 0)
        ret = blob_writer_finish(writer, digest, err);
    if (ret == 0 && strcmp(digest, blob->digest) != 0)
        ret = err_say(err, EBADMSG, "the registry sends bytes for blob %s that are not it: nothing of it was kept", blob->digest);
    return ret == 0 ? blob_writer_commit(writer, digest, err) : ret;
}

static int download(struct pull *pull, const struct image_blob *blob, struct err *err)
{
    struct http http;
    struct blob_writer writer;
    int ret = http_open(&http, pull->registry.remote, &pull->meter, err);
    if (ret < 0)
        return ret;
    ret = blob_writer_open(pull->store, &writer, err);
    if (ret == 0) {
        ret = fetch_into(pull, &http, blob, &writer, err);
        blob_writer_close(&writer);
    }
    http_close(&http);
    return ret;
}

/* The configuration is blob 0. */
static int fetch_blob(void *context, size_t index, struct err *err)
{
    struct pull *pull = context;
    const struct image_blob *blob = index ? &pull->image.layers[index - 1] : &pull->image.config;
    int ret = blob_claim(pull->store, blob->digest, &pull->meter, err);
    if (ret < 0)
        return ret;
    if (blob_here(pull->store, blob->digest, blob->size_bytes))
        meter_add(&pull->meter, (int64_t)blob->size_bytes);
    else
        ret = download(pull, blob, err);
    blob_unclaim(pull->store, blob->digest);
    return ret;
}

/* ---- the whole ---- */

static int fetch_all(struct pull *pull, struct err *err)
{
    struct search search = {.pull = pull};
    int ret = http_open(&search.http, pull->registry.remote, &pull->meter, err);
    if (ret < 0)
        return ret;
    const struct image_ref *ref = pull->registry.ref;
    ret = manifest_find(fetch_manifest, &search, ref->digest[0] ? ref->digest : ref->tag, &pull->image, &pull->manifest, err);
    http_close(&search.http);
    if (ret < 0)
        return ret;
    uint64_t total = pull->image.config.size_bytes;
    for (size_t i = 0; i < pull->image.layer_count; i++)
        total += pull->image.layers[i].size_bytes;
    meter_total(&pull->meter, total);
    ret = parallel_run(fetch_blob, pull, pull->image.layer_count + 1, &pull->meter, err);
    if (ret == 0)
        ret = image_config_check(pull->store, &pull->image, err);
    char digest[IMAGE_DIGEST_SIZE];
    return ret == 0 ? blob_add_text(pull->store, pull->manifest, pull->image.manifest.size_bytes, digest, err) : ret;
}

int image_pull(struct image_store *store, const char *ref, const struct image_remote *remote,
               const struct image_progress *progress, char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    struct image_ref parsed;
    char full[IMAGE_REF_SIZE], what[IMAGE_REF_SIZE + 8];
    int ret = image_ref_parse(ref, &parsed, err);
    if (ret < 0)
        return ret;
    own_fd int use = image_store_use(store, err);
    if (use < 0)
        return use;
    image_ref_format(&parsed, full);
    snprintf(what, sizeof what, "pull %s", ref);
    struct pull pull = {.store = store};
    pull.registry = (struct registry){.ref = &parsed, .remote = remote, .meter = &pull.meter, .actions = "pull"};
    meter_init(&pull.meter, progress, what, 0);
    ret = registry_open(&pull.registry, err);
    if (ret == 0)
        ret = fetch_all(&pull, err);
    if (ret == 0)
        ret = tags_set(store, full, &pull.image.manifest, err);
    if (ret == 0)
        memcpy(ret_digest, pull.image.manifest.digest, IMAGE_DIGEST_SIZE);
    registry_close(&pull.registry);
    meter_end(&pull.meter);
    image_clear(&pull.image);
    free(pull.manifest);
    return ret < 0 ? err_ctx(err, "pull '%s'", ref) : 0;
}
