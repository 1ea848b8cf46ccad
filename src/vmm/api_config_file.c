/* Config files: one JSON object whose members are the bodies of PUT requests; each goes through the same
 * check and handler. The order is the table's below, not the file's: the machine's size is known before a
 * balloon is checked against it. */
#include "vmm/api_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/own.h"

#define CONFIG_FILE_MAX ((size_t)1 << 20)

static const struct section {
    const char *name;
    const char *path; /* of the operation PUT */
    bool list;        /* of bodies, each with its id inside */
} sections[] = {
    {"logger", "/logger", false},
    {"metrics", "/metrics", false},
    {"machine-config", "/machine-config", false},
    {"cpu-config", "/cpu-config", false},
    {"boot-source", "/boot-source", false},
    {"throttles", "/throttles/{throttle_id}", true},
    {"drives", "/drives/{drive_id}", true},
    {"network-interfaces", "/network-interfaces/{iface_id}", true},
    {"vsock", "/vsock", false},
    {"balloon", "/balloon", false},
    {"entropy", "/entropy", false},
    {"serial", "/serial", false},
    {"pmem", "/pmem/{id}", true},
    {"memory-hotplug", "/hotplug/memory", false},
    {"mmds-config", "/mmds/config", false},
};

static const struct section *section_find(const char *name)
{
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        if (!strcmp(sections[i].name, name))
            return &sections[i];
    }
    return NULL;
}

static int apply_body(struct api *api, const struct section *section, json_t *body, struct err *err)
{
    const struct api_operation *operation = api_operation_find(API_PUT, section->path);
    bool deprecated = false;
    json_t *answer = NULL;
    int ret = api_check(operation->body, body, false, &deprecated, err);
    if (ret == 0)
        ret = api_run(api, operation, NULL, body, &answer, err);
    json_decref(answer);
    return ret < 0 ? err_ctx(err, "%s", section->name) : 0;
}

static int apply_section(struct api *api, const struct section *section, json_t *value, struct err *err)
{
    if (!section->list)
        return apply_body(api, section, value, err);
    if (!json_is_array(value))
        return err_say(err, EINVAL, "%s: invalid type: expected a sequence", section->name);
    size_t index;
    json_t *body;
    json_array_foreach(value, index, body) {
        int ret = apply_body(api, section, body, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int api_apply_config(struct api *api, json_t *root, struct err *err)
{
    const char *name;
    json_t *value;
    if (!json_is_object(root))
        return err_say(err, EINVAL, "invalid type: expected a map");
    json_object_foreach(root, name, value) {
        if (!section_find(name))
            return err_say(err, EINVAL, "unknown member `%.48s`", name);
    }
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        value = json_object_get(root, sections[i].name);
        int ret = value && !json_is_null(value) ? apply_section(api, &sections[i], value, err) : 0;
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Reads the whole file, at most CONFIG_FILE_MAX bytes; pipes are fine. */
static int read_file(const char *path, char **ret_text, size_t *ret_len, struct err *err)
{
    own_fd int fd = fdname_open(path, O_RDONLY, 0);
    own_free char *text = malloc(CONFIG_FILE_MAX + 1);
    if (fd < 0)
        return err_set(err, errno, "open");
    if (!text)
        return err_set(err, ENOMEM, "read");
    size_t len = 0;
    ssize_t n;
    do {
        n = read(fd, text + len, CONFIG_FILE_MAX + 1 - len);
        len += n > 0 ? (size_t)n : 0;
    } while ((n > 0 && len <= CONFIG_FILE_MAX) || (n < 0 && errno == EINTR));
    if (n < 0)
        return err_set(err, errno, "read");
    if (len > CONFIG_FILE_MAX)
        return err_say(err, EFBIG, "larger than %zu KiB", CONFIG_FILE_MAX >> 10);
    *ret_text = TAKE(text);
    *ret_len = len;
    return 0;
}

int api_load_config_file(struct api *api, const char *path, struct err *err)
{
    own_free char *text = NULL;
    size_t len = 0;
    json_error_t error;
    int ret = read_file(path, &text, &len, err);
    if (ret < 0)
        return err_ctx(err, "config file '%.100s'", path);
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return err_say(err, EINVAL, "config file '%.100s': line %d column %d: %.80s", path, error.line,
                       error.column, error.text);
    ret = api_apply_config(api, root, err);
    json_decref(root);
    return ret < 0 ? err_ctx(err, "config file '%.100s'", path) : 0;
}
