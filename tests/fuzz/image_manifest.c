/* Fuzz target: JSON of registries and archives: indexes, manifests, configurations. What is taken is within its bounds. */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "image/image_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A descriptor that was taken is written as it was read. */
static void check_descriptor(const struct image_blob *blob)
{
    struct image_blob again;
    own_json json_t *json = descriptor_json(blob);
    assert(json && image_digest_valid(blob->digest));
    assert(descriptor_parse(json, &again, NULL) == 0);
    assert(!strcmp(again.digest, blob->digest) && again.size_bytes == blob->size_bytes && !strcmp(again.media_type, blob->media_type));
}

static void use_manifest(const json_t *json)
{
    enum manifest_kind kind;
    struct image_blob blob;
    struct image image;
    if (manifest_classify(json, &kind, NULL) < 0)
        return;
    if (kind == MANIFEST_INDEX && manifest_choose(json, &blob, NULL) == 0)
        check_descriptor(&blob);
    if (kind == MANIFEST_INDEX || manifest_parse(json, &image, NULL) < 0)
        return;
    assert(image.layer_count <= IMAGE_LAYERS_MAX && image.config.size_bytes <= IMAGE_JSON_MAX);
    assert(manifest_config_kind(image.config.media_type));
    check_descriptor(&image.config);
    for (size_t i = 0; i < image.layer_count; i++)
        check_descriptor(&image.layers[i]);
    image_clear(&image);
}

static void use_config(const json_t *json)
{
    struct image_config config;
    if (image_config_parse(json, &config, NULL) < 0)
        return;
    for (size_t i = 0; config.env[i]; i++)
        assert(strchr(config.env[i], '='));
    for (size_t i = 0; config.volumes[i]; i++)
        assert(config.volumes[i][0] == '/');
    for (size_t i = 0; config.diff_ids[i]; i++)
        assert(image_digest_valid(config.diff_ids[i]));
    assert(config.entrypoint && config.cmd && config.labels && config.exposed_ports && config.user && config.workdir);
    image_config_clear(&config);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    own_json json_t *json = NULL;
    if (image_json_parse((const char *)data, size, "input", &json, NULL) < 0)
        return 0;
    use_manifest(json);
    use_config(json);
    return 0;
}
