/* Configurations: image-spec v1.1 "config". Lists and maps become lists of strings that end with NULL. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "image/image_impl.h"

#define LIST_MAX 8192 /* entries; their bytes are bounded by IMAGE_JSON_MAX */

static char **list_new(size_t count)
{
    return calloc(count + 1, sizeof(char *));
}

static void list_free(char **list)
{
    for (size_t i = 0; list && list[i]; i++)
        free(list[i]);
    free(list);
}

static int wrong(const char *key, const char *what, struct err *err)
{
    return err_say(err, EINVAL, "configuration: '%s' is no %s", key, what);
}

/* A list of strings, or one string alone (old images have such an entrypoint), or nothing. */
static int take_list(const json_t *object, const char *key, char ***ret_list, struct err *err)
{
    const json_t *value = json_object_get(object, key);
    bool single = json_is_string(value);
    size_t count = single ? 1 : json_array_size(value);
    if ((value && !json_is_null(value) && !single && !json_is_array(value)) || count > LIST_MAX)
        return wrong(key, "list of strings", err);
    *ret_list = list_new(count);
    for (size_t i = 0; *ret_list && i < count; i++) {
        const json_t *item = single ? value : json_array_get(value, i);
        if (!json_is_string(item))
            return wrong(key, "list of strings", err);
        (*ret_list)[i] = strdup(json_string_value(item));
        if (!(*ret_list)[i])
            return err_set(err, ENOMEM, "configuration");
    }
    return *ret_list ? 0 : err_set(err, ENOMEM, "configuration");
}

/* A map's keys, with `values` as "KEY=VALUE". */
static int take_map(const json_t *object, const char *key, bool values, char ***ret_list, struct err *err)
{
    json_t *map = json_object_get(object, key), *value;
    size_t count = json_object_size(map), i = 0;
    const char *name;
    if ((map && !json_is_null(map) && !json_is_object(map)) || count > LIST_MAX)
        return wrong(key, "map", err);
    *ret_list = list_new(count);
    if (!*ret_list)
        return err_set(err, ENOMEM, "configuration");
    json_object_foreach (map, name, value) {
        if (values && !json_is_string(value))
            return wrong(key, "map of strings", err);
        char **at = &(*ret_list)[i++];
        if (asprintf(at, values ? "%s=%s" : "%s", name, values ? json_string_value(value) : "") < 0) {
            *at = NULL;
            return err_set(err, ENOMEM, "configuration");
        }
    }
    return 0;
}

static int take_text(const json_t *object, const char *key, char **ret_text, struct err *err)
{
    const json_t *value = json_object_get(object, key);
    if (value && !json_is_null(value) && !json_is_string(value))
        return wrong(key, "string", err);
    *ret_text = strdup(image_json_string(object, key));
    return *ret_text ? 0 : err_set(err, ENOMEM, "configuration");
}

static int check_paths(char *const *paths, const char *key, struct err *err)
{
    for (size_t i = 0; paths[i]; i++)
        if (paths[i][0] != '/')
            return wrong(key, "absolute path", err);
    return 0;
}

static int check_ports(char *const *ports, struct err *err)
{
    for (size_t i = 0; ports[i]; i++) {
        unsigned first, last;
        char protocol[5] = "tcp", rest;
        int range = sscanf(ports[i], "%5u-%5u/%4s%c", &first, &last, protocol, &rest);
        int single = sscanf(ports[i], "%5u/%4s%c", &first, protocol, &rest);
        bool shaped = range == 3 || single == 2 || (single == 1 && !strchr(ports[i], '/'));
        if (!shaped || first < 1 || first > 65535 ||
            (strcmp(protocol, "tcp") != 0 && strcmp(protocol, "udp") != 0 && strcmp(protocol, "sctp") != 0))
            return wrong("ExposedPorts", "map of PORT/tcp, PORT/udp and the like", err);
    }
    return 0;
}

static int check_env(char *const *env, struct err *err)
{
    for (size_t i = 0; env[i]; i++)
        if (env[i][0] == '=' || !strchr(env[i], '='))
            return wrong("Env", "list of NAME=VALUE", err);
    return 0;
}

static int check_values(const struct image_config *config, struct err *err)
{
    int ret = check_env(config->env, err);
    if (ret == 0)
        ret = check_ports(config->exposed_ports, err);
    if (ret == 0)
        ret = check_paths(config->volumes, "Volumes", err);
    if (ret == 0 && config->workdir[0] && config->workdir[0] != '/')
        ret = wrong("WorkingDir", "absolute path", err);
    for (size_t i = 0; ret == 0 && config->diff_ids[i]; i++)
        if (!image_digest_valid(config->diff_ids[i]))
            ret = wrong("diff_ids", "list of sha256 digests", err);
    return ret;
}

static int parse(const json_t *json, struct image_config *config, struct err *err)
{
    const json_t *run = json_object_get(json, "config");
    const struct {
        const json_t *object;
        const char *key;
        char ***list;
    } lists[] = {{run, "Entrypoint", &config->entrypoint}, {run, "Cmd", &config->cmd}, {run, "Env", &config->env},
                 {json_object_get(json, "rootfs"), "diff_ids", &config->diff_ids}};
    const struct {
        const json_t *object;
        const char *key;
        char **text;
    } texts[] = {{run, "User", &config->user}, {run, "WorkingDir", &config->workdir}, {run, "StopSignal", &config->stop_signal},
                 {json, "created", &config->created_at}, {json, "architecture", &config->architecture}, {json, "os", &config->os}};
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < sizeof lists / sizeof *lists; i++)
        ret = take_list(lists[i].object, lists[i].key, lists[i].list, err);
    for (size_t i = 0; ret == 0 && i < sizeof texts / sizeof *texts; i++)
        ret = take_text(texts[i].object, texts[i].key, texts[i].text, err);
    if (ret == 0)
        ret = take_map(run, "ExposedPorts", false, &config->exposed_ports, err);
    if (ret == 0)
        ret = take_map(run, "Volumes", false, &config->volumes, err);
    if (ret == 0)
        ret = take_map(run, "Labels", true, &config->labels, err);
    return ret == 0 ? check_values(config, err) : ret;
}

int image_config_parse(const json_t *json, struct image_config *ret_config, struct err *err)
{
    struct image_config config = {0};
    int ret = parse(json, &config, err);
    if (ret < 0)
        image_config_clear(&config);
    else
        *ret_config = config;
    return ret;
}

void image_config_clear(struct image_config *config)
{
    char **const lists[] = {config->entrypoint, config->cmd,    config->env,     config->exposed_ports,
                            config->volumes,    config->labels, config->diff_ids};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        list_free(lists[i]);
    char *const texts[] = {config->user,       config->workdir,      config->stop_signal,
                           config->created_at, config->architecture, config->os};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        free(texts[i]);
    *config = (struct image_config){0};
}

int image_config_get(struct image_store *store, const struct image *image, struct image_config *ret_config, struct err *err)
{
    own_free char *text = NULL;
    size_t length;
    int ret = blob_read_text(store, image->config.digest, &text, &length, err);
    own_json json_t *json = NULL;
    if (ret == 0)
        ret = image_json_parse(text, length, "configuration", &json, err);
    return ret == 0 ? image_config_parse(json, ret_config, err) : ret;
}

int image_config_check(struct image_store *store, const struct image *image, struct err *err)
{
    if (strcmp(manifest_config_kind(image->config.media_type), "oci") != 0)
        return 0;
    struct image_config config;
    int ret = image_config_get(store, image, &config, err);
    if (ret != 0)
        return ret;
    size_t layers = 0;
    while (config.diff_ids[layers])
        layers++;
    if (strcmp(config.os, "linux") != 0 || strcmp(config.architecture, "amd64") != 0)
        ret = err_say(err, EINVAL, "the image is made for %.40s/%.40s, not for linux/amd64", config.os, config.architecture);
    else if (layers != image->layer_count)
        ret = err_say(err, EINVAL, "configuration: knows %zu layers, the manifest %zu", layers, image->layer_count);
    image_config_clear(&config);
    return ret;
}
