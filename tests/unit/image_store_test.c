/* The image store: images made here, tags, garbage, damage, several handles on one folder. */
#include "cmocka_all.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/image_impl.h"

static char dir[64];
static struct image_store *store;

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/polder-image-XXXXXX");
    return mkdtemp(dir) ? image_store_open(dir, &store, NULL) : -1;
}

static int tear_down(void **state)
{
    (void)state;
    image_store_close(store);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static unsigned files_in(const char *name)
{
    char path[128];
    unsigned count = 0;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    DIR *folder = opendir(path);
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder));)
        count += entry->d_name[0] != '.';
    closedir(folder);
    return count;
}

/* A pipe with `text` in it. */
static int pipe_with(const char *text, size_t length)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], text, length), length);
    close(ends[1]);
    return ends[0];
}

static void add(const char *ref, const char *layer, char digest[static IMAGE_DIGEST_SIZE])
{
    struct err err = {0};
    own_fd int fd = pipe_with(layer, strlen(layer));
    own_json json_t *config = json_pack("{s:{s:[s], s:[s], s:{s:{}}, s:{s:s}}}", "config", "Cmd", "true", "Env", "A=b",
                                        "ExposedPorts", "80/tcp", "Labels", "k", "v");
    struct image_layer_source source = {.fd = fd};
    if (image_add(store, ref, &source, 1, config, NULL, NULL, digest, &err) < 0)
        fail_msg("%s", err.message);
}

static void an_added_image_can_be_read(void **state)
{
    (void)state;
    char digest[IMAGE_DIGEST_SIZE], layer_digest[IMAGE_DIGEST_SIZE];
    struct image image;
    struct image_config config;
    add("app", "layer", digest);
    assert_int_equal(image_get(store, "app:latest", &image, NULL), 0);
    assert_string_equal(image.ref, "docker.io/library/app:latest");
    assert_string_equal(image.manifest.digest, digest);
    assert_int_equal(image.layer_count, 1);
    assert_int_equal(image.layers[0].size_bytes, 5);
    assert_string_equal(image.layers[0].media_type, MEDIA_OCI_LAYER);
    blob_digest("layer", 5, layer_digest);
    assert_string_equal(image.layers[0].digest, layer_digest);
    assert_int_equal(image_config_get(store, &image, &config, NULL), 0);
    assert_string_equal(config.diff_ids[0], layer_digest);
    assert_string_equal(config.cmd[0], "true");
    assert_string_equal(config.env[0], "A=b");
    assert_string_equal(config.exposed_ports[0], "80/tcp");
    assert_string_equal(config.labels[0], "k=v");
    assert_null(config.entrypoint[0]);
    image_config_clear(&config);
    image_clear(&image);
    assert_int_equal(image_get(store, digest, &image, NULL), 0);
    assert_string_equal(image.ref, "");
    image_clear(&image);
}

static void a_gzip_layer_is_known_by_what_is_in_it(void **state)
{
    (void)state;
    static const char gzip_of_layer[] = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03"
                                        "\xcb\x49\xac\x4c\x2d\x02\x00\x1a\x21\xdb\xe4\x05\x00\x00\x00";
    char digest[IMAGE_DIGEST_SIZE], diff_id[IMAGE_DIGEST_SIZE];
    own_fd int fd = pipe_with(gzip_of_layer, sizeof gzip_of_layer - 1);
    struct image_layer_source source = {.fd = fd};
    struct err err = {0};
    if (image_add(store, "zipped", &source, 1, NULL, NULL, NULL, digest, &err) < 0)
        fail_msg("%s", err.message);
    own_json json_t *image = NULL;
    assert_int_equal(image_inspect(store, "zipped", &image, NULL), 0);
    const json_t *layer = json_array_get(json_object_get(image, "layers"), 0);
    blob_digest("layer", 5, diff_id);
    assert_string_equal(image_json_string(layer, "diff_id"), diff_id);
    assert_string_equal(image_json_string(layer, "media_type"), MEDIA_OCI_LAYER "+gzip");

    own_fd int cut = pipe_with(gzip_of_layer, sizeof gzip_of_layer - 10);
    source.fd = cut;
    assert_int_equal(image_add(store, "cut", &source, 1, NULL, NULL, NULL, digest, &err), -EINVAL);
    assert_int_equal(image_get(store, "cut", &(struct image){0}, NULL), -ENOENT);
    assert_int_equal(files_in(store->tmp_name), 0);
}

static void disk_images_have_a_kind_of_their_own(void **state)
{
    (void)state;
    char digest[IMAGE_DIGEST_SIZE];
    own_fd int fd = pipe_with("QFI\xfb", 4);
    struct image_layer_source source = {.fd = fd, .media_type = "application/vnd.polder.disk.qcow2"};
    assert_int_equal(image_add(store, "disk", &source, 1, NULL, IMAGE_DISK_CONFIG_TYPE, NULL, digest, NULL), 0);
    own_json json_t *image = NULL;
    assert_int_equal(image_inspect(store, "disk", &image, NULL), 0);
    assert_string_equal(image_json_string(image, "kind"), "disk");
    assert_int_equal(image_add(store, "other", &source, 1, NULL, "text/plain", NULL, digest, NULL), -EINVAL);
}

static void tags_move_and_go(void **state)
{
    (void)state;
    char one[IMAGE_DIGEST_SIZE], two[IMAGE_DIGEST_SIZE];
    struct image image;
    add("a", "1", one);
    add("b", "2", two);
    assert_int_equal(image_tag(store, "a", "r.io/c:x", NULL), 0);
    assert_int_equal(image_tag(store, one, "b", NULL), 0);
    assert_int_equal(image_get(store, "b", &image, NULL), 0);
    assert_string_equal(image.manifest.digest, one);
    image_clear(&image);
    own_json json_t *list = NULL;
    assert_int_equal(image_list(store, &list, NULL), 0);
    assert_int_equal(json_array_size(list), 3);
    assert_string_equal(image_json_string(json_array_get(list, 2), "ref"), "r.io/c:x");
    assert_int_equal(image_remove(store, "b", NULL), 0);
    assert_int_equal(image_remove(store, "b", NULL), -ENOENT);
    assert_int_equal(image_remove(store, one, NULL), 0); /* both of its tags */
    json_t *rest;
    assert_int_equal(image_list(store, &rest, NULL), 0);
    assert_int_equal(json_array_size(rest), 0);
    json_decref(rest);
    assert_int_equal(image_tag(store, "nothing", "d", NULL), -ENOENT);
    assert_int_equal(image_tag(store, two, "x@sha256:0", NULL), -EINVAL);
}

static void garbage_is_what_nothing_leads_to(void **state)
{
    (void)state;
    char one[IMAGE_DIGEST_SIZE], two[IMAGE_DIGEST_SIZE];
    add("a", "1", one);
    add("b", "2", two);
    struct image_gc_result result;
    assert_int_equal(image_gc(store, NULL, 0, &result, NULL), 0);
    assert_int_equal(result.blobs, 0);
    assert_int_equal(image_remove(store, "a", NULL), 0);
    const char *pins[] = {one};
    assert_int_equal(image_gc(store, pins, 1, &result, NULL), 0);
    assert_int_equal(result.blobs, 0);
    assert_int_equal(image_gc(store, NULL, 0, &result, NULL), 0);
    assert_int_equal(result.blobs, 3);
    assert_int_equal(files_in("blobs/sha256"), 3);
    struct image image;
    assert_int_equal(image_get(store, "b", &image, NULL), 0);
    image_clear(&image);
}

static void garbage_stays_while_someone_works(void **state)
{
    (void)state;
    struct image_gc_result result;
    int use = image_store_use(store, NULL);
    assert_true(use >= 0);
    assert_int_equal(image_gc(store, NULL, 0, &result, NULL), -EBUSY);
    close(use);
    assert_int_equal(image_gc(store, NULL, 0, &result, NULL), 0);
}

/* Overwrites a byte of a blob. */
static void damage(const char *digest)
{
    char path[256];
    snprintf(path, sizeof path, "%s/blobs/sha256/%s", dir, IMAGE_SHA256_HEX(digest));
    assert_int_equal(chmod(path, 0600), 0);
    own_fd int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "X", 1, 3), 1);
}

static void damage_is_seen_and_can_be_removed(void **state)
{
    (void)state;
    char one[IMAGE_DIGEST_SIZE], two[IMAGE_DIGEST_SIZE];
    add("a", "1", one);
    add("b", "2", two);
    damage(one);
    struct err err = {0};
    struct image image;
    assert_int_equal(image_get(store, "a", &image, &err), -EBADMSG);
    assert_non_null(strstr(err.message, "damaged"));
    own_json json_t *list = NULL;
    assert_int_equal(image_list(store, &list, NULL), 0);
    assert_true(json_object_get(json_array_get(list, 0), "error"));
    assert_false(json_object_get(json_array_get(list, 1), "error"));
    assert_int_equal(image_remove(store, "a", NULL), 0);
    struct image_gc_result result;
    assert_int_equal(image_gc(store, NULL, 0, &result, NULL), 0);
    assert_int_equal(result.blobs, 3);

    char path[128];
    snprintf(path, sizeof path, "%s/index.json", dir);
    assert_int_equal(truncate(path, 40), 0);
    assert_int_equal(image_get(store, "b", &image, &err), -EBADMSG);
    assert_int_equal(image_gc(store, NULL, 0, &result, NULL), -EBADMSG); /* and nothing went */
    assert_int_equal(files_in("blobs/sha256"), 3);
}

static void what_dead_writers_left_goes(void **state)
{
    (void)state;
    struct blob_writer writer;
    struct image_store *other;
    assert_int_equal(blob_writer_open(store, &writer, NULL), 0);
    char path[128];
    snprintf(path, sizeof path, "%s/tmp/dead", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/tmp/dead/7", dir);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(image_store_open(dir, &other, NULL), 0);
    assert_int_equal(files_in("tmp"), 2); /* the two handles' own */
    assert_int_equal(files_in(store->tmp_name), 1);
    blob_writer_close(&writer);
    assert_int_equal(files_in(store->tmp_name), 0);
    image_store_close(other);
}

struct adder {
    struct image_store *store;
    unsigned number;
};

static void *add_many(void *context)
{
    const struct adder *adder = context;
    for (unsigned i = 0; i < 20; i++) {
        char ref[32], digest[IMAGE_DIGEST_SIZE];
        snprintf(ref, sizeof ref, "t%u:%u", adder->number, i);
        int fd = pipe_with("same", 4);
        struct image_layer_source source = {.fd = fd};
        int ret = image_add(adder->store, ref, &source, 1, NULL, NULL, NULL, digest, NULL);
        close(fd);
        if (ret < 0)
            return "add";
    }
    return NULL;
}

static void threads_and_handles_share_a_folder(void **state)
{
    (void)state;
    struct image_store *other;
    pthread_t threads[4];
    struct adder adders[4];
    assert_int_equal(image_store_open(dir, &other, NULL), 0);
    for (unsigned i = 0; i < 4; i++) {
        adders[i] = (struct adder){i % 2 ? store : other, i};
        assert_int_equal(pthread_create(&threads[i], NULL, add_many, &adders[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    own_json json_t *list = NULL;
    assert_int_equal(image_list(store, &list, NULL), 0);
    assert_int_equal(json_array_size(list), 80);
    image_store_close(other);
}

static unsigned claimed; /* guarded by the claim alone */

static void *claim_many(void *context)
{
    struct image_meter *meter = context;
    for (unsigned i = 0; i < 200; i++) {
        if (blob_claim(store, "sha256:x", meter, NULL) < 0)
            return "claim";
        claimed++;
        blob_unclaim(store, "sha256:x");
    }
    return NULL;
}

static void a_claim_is_one_thread_s(void **state)
{
    (void)state;
    pthread_t threads[4];
    struct image_meter meter;
    meter_init(&meter, NULL, "", 0);
    claimed = 0;
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, claim_many, &meter), 0);
    for (unsigned i = 0; i < 4; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    assert_int_equal(claimed, 800);
    assert_int_equal(blob_claim(store, "sha256:x", &meter, NULL), 0);
    atomic_store(&meter.stopped, true); /* who waits can be cancelled */
    assert_int_equal(blob_claim(store, "sha256:x", &meter, NULL), -ECANCELED);
    blob_unclaim(store, "sha256:x");
    meter_end(&meter);
}

static bool always(void *context)
{
    (void)context;
    return true;
}

static void cancelled_work_leaves_nothing(void **state)
{
    (void)state;
    char digest[IMAGE_DIGEST_SIZE];
    struct image_progress progress = {.cancelled = always};
    own_fd int fd = pipe_with("layer", 5);
    struct image_layer_source source = {.fd = fd};
    assert_int_equal(image_add(store, "x", &source, 1, NULL, NULL, &progress, digest, NULL), -ECANCELED);
    assert_int_equal(files_in("blobs/sha256"), 0);
    assert_int_equal(files_in(store->tmp_name), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_added_image_can_be_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_gzip_layer_is_known_by_what_is_in_it, set_up, tear_down),
        cmocka_unit_test_setup_teardown(disk_images_have_a_kind_of_their_own, set_up, tear_down),
        cmocka_unit_test_setup_teardown(tags_move_and_go, set_up, tear_down),
        cmocka_unit_test_setup_teardown(garbage_is_what_nothing_leads_to, set_up, tear_down),
        cmocka_unit_test_setup_teardown(garbage_stays_while_someone_works, set_up, tear_down),
        cmocka_unit_test_setup_teardown(damage_is_seen_and_can_be_removed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_dead_writers_left_goes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(threads_and_handles_share_a_folder, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_claim_is_one_thread_s, set_up, tear_down),
        cmocka_unit_test_setup_teardown(cancelled_work_leaves_nothing, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
