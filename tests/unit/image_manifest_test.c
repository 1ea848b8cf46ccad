/* What registries and archives say: manifests, indexes, configurations, challenges, URLs; good, odd and hostile. */
#include "cmocka_all.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "image/registry_impl.h"

#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define DIGEST "\"sha256:" HEX "\""
#define CONFIG "\"config\":{\"mediaType\":\"" MEDIA_OCI_CONFIG "\",\"digest\":" DIGEST ",\"size\":2}"
#define LAYER(type, size) "{\"mediaType\":\"" type "\",\"digest\":" DIGEST ",\"size\":" size "}"
#define MANIFEST(layers) "{\"schemaVersion\":2," CONFIG ",\"layers\":[" layers "]}"
#define ENTRY(os, arch, more, size)                                                                                                        \
    "{\"mediaType\":\"" MEDIA_OCI_MANIFEST "\",\"digest\":" DIGEST ",\"size\":" size ",\"platform\":{\"os\":\"" os                         \
    "\",\"architecture\":\"" arch "\"" more "}}"
#define INDEX(entries) "{\"schemaVersion\":2,\"manifests\":[" entries "]}"

static int parse_manifest(const char *text, struct image *image, struct err *err)
{
    own_json json_t *json = NULL;
    enum manifest_kind kind;
    int ret = image_json_parse(text, strlen(text), "manifest", &json, err);
    if (ret == 0)
        ret = manifest_classify(json, &kind, err);
    if (ret == 0)
        ret = kind == MANIFEST_IMAGE ? manifest_parse(json, image, err) : -EISDIR;
    return ret;
}

static void a_manifest_names_its_parts(void **state)
{
    (void)state;
    struct image image;
    assert_int_equal(parse_manifest(MANIFEST(LAYER(MEDIA_OCI_LAYER "+zstd", "7")), &image, NULL), 0);
    assert_int_equal(image.layer_count, 1);
    assert_int_equal(image.layers[0].size_bytes, 7);
    assert_string_equal(image.layers[0].media_type, MEDIA_OCI_LAYER "+zstd");
    image_clear(&image);
}

static void hostile_manifests_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "no JSON"},
        {"{", "no JSON"},
        {"[]", "no JSON object"},
        {"{\"a\":1,\"a\":1}", "no JSON"},
        {"{\"a\":\"\\u0000\"}", "no JSON"},
        {"{\"schemaVersion\":1}", "schema 1"},
        {"{\"schemaVersion\":\"2\"}", "schemaVersion"},
        {"{\"schemaVersion\":2}", "neither"},
        {"{\"schemaVersion\":2,\"layers\":[],\"manifests\":[]}", "both"},
        {"{\"schemaVersion\":2,\"mediaType\":\"" MEDIA_OCI_INDEX "\",\"layers\":[]}", "not what it is"},
        {MANIFEST("1"), "no sha256 digest"},
        {MANIFEST(LAYER(MEDIA_OCI_LAYER, "-1")), "no size"},
        {MANIFEST(LAYER(MEDIA_OCI_LAYER, "1.5")), "no size"},
        {MANIFEST(LAYER(MEDIA_OCI_LAYER, "1099511627777")), "no size"},
        {MANIFEST(LAYER("a b", "1")), "mediaType"},
        {MANIFEST(LAYER("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "1")), "not handled"},
        {"{\"schemaVersion\":2,\"layers\":[],\"config\":{\"mediaType\":\"" MEDIA_OCI_CONFIG "\",\"digest\":" DIGEST
         ",\"size\":2097153}}", "at most"},
        {"{\"schemaVersion\":2,\"layers\":{}," CONFIG "}", "no list"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct image image;
        struct err err = {0};
        assert_true(parse_manifest(cases[i].text, &image, &err) == -EINVAL);
        if (!strstr(err.message, cases[i].says))
            fail_msg("case %zu: '%s'", i, err.message);
    }
}

static void too_many_layers_are_refused(void **state)
{
    (void)state;
    static char text[(IMAGE_LAYERS_MAX + 2) * 256];
    struct image image;
    char *at = text + sprintf(text, "{\"schemaVersion\":2," CONFIG ",\"layers\":[" LAYER(MEDIA_OCI_LAYER, "1"));
    for (int i = 1; i < IMAGE_LAYERS_MAX; i++)
        at += sprintf(at, "," LAYER(MEDIA_OCI_LAYER, "1"));
    strcpy(at, "]}");
    assert_int_equal(parse_manifest(text, &image, NULL), 0);
    assert_int_equal(image.layer_count, IMAGE_LAYERS_MAX);
    image_clear(&image);
    strcpy(at, "," LAYER(MEDIA_OCI_LAYER, "1") "]}");
    assert_int_equal(parse_manifest(text, &image, NULL), -EINVAL);
}

static int choose(const char *text, struct image_blob *blob)
{
    own_json json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    return manifest_choose(json, blob, NULL);
}

static void an_index_gives_what_fits_best(void **state)
{
    (void)state;
    struct image_blob blob;
    assert_int_equal(choose(INDEX(ENTRY("linux", "arm64", "", "1") "," ENTRY("linux", "amd64", ",\"variant\":\"v3\"", "2") ","
                                  ENTRY("linux", "amd64", "", "3")), &blob), 0);
    assert_int_equal(blob.size_bytes, 3);
    assert_int_equal(choose(INDEX(ENTRY("windows", "amd64", "", "1") "," ENTRY("linux", "s390x", "", "1")), &blob), -ENOENT);
    assert_int_equal(choose(INDEX(""), &blob), -ENOENT);
    assert_int_equal(choose(INDEX(ENTRY("linux", "amd64", "", "2097153")), &blob), -EINVAL);
}

static int parse_config(const char *run, struct image_config *config, struct err *err)
{
    char text[1024];
    snprintf(text, sizeof text, "{\"os\":\"linux\",\"config\":%s}", run);
    own_json json_t *json = NULL;
    int ret = image_json_parse(text, strlen(text), "configuration", &json, err);
    return ret == 0 ? image_config_parse(json, config, err) : ret;
}

static void a_configuration_is_lists_and_texts(void **state)
{
    (void)state;
    struct image_config config;
    assert_int_equal(parse_config("{\"Entrypoint\":\"sh\",\"Cmd\":[\"a\",\"\"],\"Env\":null,\"User\":\"1:2\",\"WorkingDir\":\"/x\","
                                  "\"StopSignal\":\"SIGINT\",\"Volumes\":{\"/d\":{}},\"ExposedPorts\":{\"53/udp\":{},\"1-2/tcp\":{},"
                                  "\"80\":{}}}", &config, NULL), 0);
    assert_string_equal(config.entrypoint[0], "sh");
    assert_string_equal(config.cmd[1], "");
    assert_null(config.cmd[2]);
    assert_null(config.env[0]);
    assert_string_equal(config.user, "1:2");
    assert_string_equal(config.stop_signal, "SIGINT");
    assert_string_equal(config.volumes[0], "/d");
    assert_string_equal(config.exposed_ports[2], "80");
    image_config_clear(&config);
    assert_int_equal(parse_config("null", &config, NULL), 0);
    assert_null(config.cmd[0]);
    image_config_clear(&config);
}

static void odd_configurations_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"{\"Cmd\":{}}", "{\"Cmd\":[1]}", "{\"Env\":[\"X\"]}", "{\"Env\":[\"=x\"]}", "{\"User\":1}",
        "{\"WorkingDir\":\"x\"}", "{\"Volumes\":{\"x\":{}}}", "{\"Volumes\":[]}", "{\"Labels\":{\"a\":1}}",
        "{\"ExposedPorts\":{\"0/tcp\":{}}}", "{\"ExposedPorts\":{\"99999/tcp\":{}}}", "{\"ExposedPorts\":{\"1/icmp\":{}}}",
        "{\"ExposedPorts\":{\"1/tcp/x\":{}}}", "{\"ExposedPorts\":{\"x\":{}}}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct image_config config;
        struct err err = {0};
        if (parse_config(bad[i], &config, &err) != -EINVAL)
            fail_msg("'%s' was taken", bad[i]);
        assert_non_null(strstr(err.message, "configuration: '"));
    }
}

static void challenges(void **state)
{
    (void)state;
    struct auth_challenge c;
    assert_true(auth_challenge_parse("Bearer realm=\"https://a/t\",service=\"s,\\\"x\",scope=\"y\"", &c));
    assert_int_equal(c.scheme, AUTH_BEARER);
    assert_string_equal(c.realm, "https://a/t");
    assert_string_equal(c.service, "s,\"x");
    assert_true(auth_challenge_parse("basic Realm = x", &c));
    assert_int_equal(c.scheme, AUTH_BASIC);
    assert_string_equal(c.realm, "x");
    static const char *const bad[] = {"", "Digest realm=\"x\"", "Bearer", "Bearer service=\"x\"", "Bearer realm=\"x", "Bearer realm",
        "Bearer =x", "Bearer realm=\"a\nb\"", "Basicrealm=x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (auth_challenge_parse(bad[i], &c))
            fail_msg("'%s' was taken", bad[i]);
}

static void urls(void **state)
{
    (void)state;
    char url[HTTP_URL_SIZE];
    assert_int_equal(url_resolve("https://a/v2/x", "/y?z=1", false, url, NULL), 0);
    assert_string_equal(url, "https://a/y?z=1");
    assert_int_equal(url_add_query(url, "digest", "sha256:0", NULL), 0);
    assert_string_equal(url, "https://a/y?z=1&digest=sha256%3a0");
    assert_int_equal(url_resolve("https://a/v2/x", "http://a/", false, url, NULL), -EINVAL);
    assert_int_equal(url_resolve("https://a/v2/x", "http://a/", true, url, NULL), 0);
    assert_int_equal(url_resolve("https://a/v2/x", "file:///etc/passwd", true, url, NULL), -EINVAL);
    assert_true(url_same_origin("https://a/x", "https://A:443/y"));
    assert_false(url_same_origin("https://a/x", "http://a/x"));
    assert_false(url_same_origin("https://a/x", "https://a:444/x"));
    assert_false(url_same_origin("https://a/x", "https://a.b/x"));
    assert_false(url_same_origin("https://a/x", "https://a@b/x"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_manifest_names_its_parts),
        cmocka_unit_test(hostile_manifests_are_refused),
        cmocka_unit_test(too_many_layers_are_refused),
        cmocka_unit_test(an_index_gives_what_fits_best),
        cmocka_unit_test(a_configuration_is_lists_and_texts),
        cmocka_unit_test(odd_configurations_are_refused),
        cmocka_unit_test(challenges),
        cmocka_unit_test(urls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
