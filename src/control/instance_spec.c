/* What an instance shall be: one table of members says which there are, their kinds, bounds and defaults. */
#include "control/instance_spec.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "control/json.h"
#include "control/network.h"

#define TEXT_MAX 4096          /* bytes of a text */
#define LIST_MAX 1024          /* entries of a list */
#define USER_DATA_MAX 65536
#define VOLUMES_MAX 13         /* 16 disks, less root, its writable layer and the seed */
#define MIB (INT64_C(1) << 20)

enum kind { TEXT, NAME, CHOICE, FLAG, NUMBER, TEXTS, LABELS, NETWORKS, PORTS, VOLUMES };

struct member {
    const char *name;
    enum kind kind;
    const char *preset; /* JSON text; NULL: stays absent */
    const char *vm_preset; /* the same of kind vm; NULL: no other */
    int64_t min, max;   /* NUMBER: of the value; TEXT: max bytes */
    const char *choices; /* CHOICE: "|no|always|" */
    bool changes; /* instance_spec_change takes it */
};

/* Alphabetical order does not matter; what the user reads first comes first. */
static const struct member members[] = {
    {.name = "name", .kind = NAME},
    {.name = "image", .kind = TEXT, .max = 767},
    {.name = "kind", .kind = CHOICE, .preset = "\"microvm\"", .choices = "|microvm|vm|"},
    {.name = "command", .kind = TEXTS, .preset = "[]"},
    {.name = "entrypoint", .kind = TEXTS},
    {.name = "env", .kind = TEXTS, .preset = "[]"},
    {.name = "user", .kind = TEXT, .preset = "\"\"", .max = 255},
    {.name = "workdir", .kind = TEXT, .preset = "\"\"", .max = TEXT_MAX},
    {.name = "hostname", .kind = NAME},
    {.name = "tty", .kind = FLAG, .preset = "false"},
    {.name = "stdin", .kind = FLAG, .preset = "false"},
    {.name = "cpus", .kind = NUMBER, .preset = "1", .min = 1, .max = 32, .changes = true},
    {.name = "cpu_weight", .kind = NUMBER, .preset = "100", .min = 1, .max = 10000, .changes = true},
    {.name = "memory_bytes", .kind = NUMBER, .preset = "268435456", .vm_preset = "1073741824", .min = 64 * MIB, .max = MIB << 20,
     .changes = true},
    {.name = "disk_bytes", .kind = NUMBER, .preset = "10737418240", .min = 16 * MIB, .max = MIB << 26},
    {.name = "networks", .kind = NETWORKS},
    {.name = "ports", .kind = PORTS, .preset = "[]", .changes = true},
    {.name = "volumes", .kind = VOLUMES, .preset = "[]"},
    {.name = "restart", .kind = CHOICE, .preset = "\"no\"", .choices = "|no|on-failure|always|", .changes = true},
    {.name = "remove", .kind = FLAG, .preset = "false"},
    {.name = "labels", .kind = LABELS, .preset = "{}", .changes = true},
    {.name = "engine", .kind = CHOICE, .preset = "\"auto\"", .choices = "|auto|kvm|jit|"},
    {.name = "user_data", .kind = TEXT, .preset = "\"\"", .max = USER_DATA_MAX},
};

static const struct member *member_find(const char *name)
{
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        if (!strcmp(members[i].name, name))
            return &members[i];
    }
    return NULL;
}

bool instance_name_valid(const char *name)
{
    size_t len = strlen(name);
    if (!len || len > 63 || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != len)
        return false;
    return name[0] != '-' && name[len - 1] != '-';
}

/* ---- values ---- */

static int check_text(const char *name, const json_t *value, size_t max, struct err *err)
{
    const char *text = json_string_value(value);
    if (!text)
        return err_say(err, EINVAL, "%s: a text is needed", name);
    if (json_string_length(value) > max)
        return err_say(err, EINVAL, "%s: at most %zu bytes", name, max);
    if (strlen(text) != json_string_length(value))
        return err_say(err, EINVAL, "%s: the text must not hold a NUL", name);
    return 0;
}

static int check_name(const char *name, const json_t *value, struct err *err)
{
    int ret = check_text(name, value, TEXT_MAX, err);
    if (ret < 0)
        return ret;
    if (!instance_name_valid(json_string_value(value)))
        return err_say(err, EINVAL, "%s: '%.80s' is no name: up to 63 of a-z, 0-9 and '-', not at either end", name,
                       json_string_value(value));
    return 0;
}

static int check_choice(const struct member *member, const json_t *value, struct err *err)
{
    char wanted[32];
    const char *text = json_string_value(value);
    if (text && !strchr(text, '|') && snprintf(wanted, sizeof wanted, "|%s|", text) < (int)sizeof wanted &&
        strstr(member->choices, wanted))
        return 0;
    return err_say(err, EINVAL, "%s: one of %.*s", member->name, (int)strlen(member->choices) - 2, member->choices + 1);
}

static int check_number(const struct member *member, const json_t *value, struct err *err)
{
    if (json_is_integer(value) && json_integer_value(value) >= member->min && json_integer_value(value) <= member->max)
        return 0;
    return err_say(err, EINVAL, "%s: a number from %lld to %lld", member->name, (long long)member->min,
                   (long long)member->max);
}

static int check_list(const char *name, const json_t *value, size_t max, struct err *err)
{
    if (json_is_array(value) && json_array_size(value) <= max)
        return 0;
    return err_say(err, EINVAL, "%s: a list of at most %zu is needed", name, max);
}

static int check_texts(const struct member *member, const json_t *value, struct err *err)
{
    size_t i;
    json_t *entry;
    bool env = !strcmp(member->name, "env");
    int ret = check_list(member->name, value, LIST_MAX, err);
    json_array_foreach (value, i, entry) {
        if (ret < 0)
            return ret;
        ret = check_text(member->name, entry, env ? 32768 : USER_DATA_MAX, err);
        if (!ret && env && (!strchr(json_string_value(entry), '=') || json_string_value(entry)[0] == '='))
            ret = err_say(err, EINVAL, "env: '%.80s' is not KEY=VALUE", json_string_value(entry));
    }
    return ret;
}

static int check_labels(const json_t *value, struct err *err)
{
    const char *key;
    json_t *label;
    if (!json_is_object(value) || json_object_size(value) > 64)
        return err_say(err, EINVAL, "labels: an object of at most 64 members is needed");
    void *iter = json_object_iter((json_t *)(uintptr_t)value);
    for (; iter; iter = json_object_iter_next((json_t *)(uintptr_t)value, iter)) {
        key = json_object_iter_key(iter);
        label = json_object_iter_value(iter);
        if (!*key || strlen(key) > 255)
            return err_say(err, EINVAL, "labels: a key has 1 to 255 bytes");
        int ret = check_text("labels", label, TEXT_MAX, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Absolute, not the root, and no part of it is "." or ".." or empty. */
static bool mount_path_valid(const char *path)
{
    if (path[0] != '/' || !path[1] || strlen(path) > 1024)
        return false;
    for (const char *part = path; *part; part += strcspn(part, "/")) {
        part++;
        size_t len = strcspn(part, "/");
        if (!len || (len <= 2 && !strncmp(part, "..", len)))
            return false;
    }
    return true;
}

static int check_volume(const json_t *list, size_t index, const json_t *volume, struct err *err)
{
    if (!json_is_object(volume))
        return err_say(err, EINVAL, "volumes: {\"volume\", \"path\", \"read_only\"} is needed");
    int ret = json_only_members("volumes", volume, "|volume|path|read_only|", err);
    if (!ret)
        ret = check_name("volumes: volume", json_object_get(volume, "volume"), err);
    if (ret < 0)
        return ret;
    const char *path = json_text(volume, "path");
    if (!mount_path_valid(path))
        return err_say(err, EINVAL, "volumes: '%.80s' is no absolute path in the instance", path);
    const json_t *read_only = json_object_get(volume, "read_only");
    if (read_only && !json_is_boolean(read_only))
        return err_say(err, EINVAL, "volumes: read_only is true or false");
    for (size_t i = 0; i < index; i++) {
        const json_t *other = json_array_get(list, i);
        if (!strcmp(json_text(other, "path"), path) || !strcmp(json_text(other, "volume"), json_text(volume, "volume")))
            return err_say(err, EINVAL, "volumes: '%s' at '%.80s': a volume or path is named twice",
                           json_text(volume, "volume"), path);
    }
    return 0;
}

static int check_volumes(const json_t *value, struct err *err)
{
    size_t i;
    json_t *entry;
    int ret = check_list("volumes", value, VOLUMES_MAX, err);
    json_array_foreach (value, i, entry) {
        if (ret < 0)
            return ret;
        ret = check_volume(value, i, entry, err);
    }
    return ret;
}

static int check_member(const struct member *member, const json_t *value, struct err *err)
{
    switch (member->kind) {
    case TEXT:
        return check_text(member->name, value, (size_t)member->max, err);
    case NAME:
        return check_name(member->name, value, err);
    case CHOICE:
        return check_choice(member, value, err);
    case FLAG:
        return json_is_boolean(value) ? 0 : err_say(err, EINVAL, "%s: true or false", member->name);
    case NUMBER:
        return check_number(member, value, err);
    case TEXTS:
        return check_texts(member, value, err);
    case LABELS:
        return check_labels(value, err);
    case NETWORKS:
        return network_check_spec(value, NULL, err);
    case PORTS:
        return network_check_spec(NULL, value, err);
    case VOLUMES:
    default:
        return check_volumes(value, err);
    }
}

/* ---- the whole ---- */

static int check_together(const json_t *spec, struct err *err)
{
    bool vm = !strcmp(json_text(spec, "kind"), "vm");
    const json_t *networks = json_object_get(spec, "networks");
    if (!*json_text(spec, "image"))
        return err_say(err, EINVAL, "image: the image to run is missing, such as \"debian\"");
    if (vm && (json_array_size(json_object_get(spec, "command")) || json_object_get(spec, "entrypoint")))
        return err_say(err, EINVAL, "command: an instance of kind vm runs its own init");
    if (networks && !json_array_size(networks) && json_array_size(json_object_get(spec, "ports")))
        return err_say(err, EINVAL, "ports: the instance has no network");
    if (json_is_true(json_object_get(spec, "remove")) && strcmp(json_text(spec, "restart"), "no") != 0)
        return err_say(err, EINVAL, "remove: does not go with restart");
    return 0;
}

/* Puts a checked copy of every member of `from` into `spec`. `all`: also of those that cannot be changed later. */
static int take_members(const json_t *from, bool all, json_t *spec, struct err *err)
{
    if (!json_is_object(from))
        return err_say(err, EINVAL, "an object of the instance's members is needed");
    json_t *object = (json_t *)(uintptr_t)from;
    for (void *iter = json_object_iter(object); iter; iter = json_object_iter_next(object, iter)) {
        const char *name = json_object_iter_key(iter);
        const struct member *member = member_find(name);
        if (!member)
            return err_say(err, EINVAL, "'%.80s' is no member of an instance", name);
        if (!all && !member->changes)
            return err_say(err, EINVAL, "%s: cannot be changed once the instance is there", name);
        int ret = check_member(member, json_object_iter_value(iter), err);
        if (ret < 0)
            return ret;
        if (json_object_set_new(spec, name, json_deep_copy(json_object_iter_value(iter))) < 0)
            return err_set(err, ENOMEM, "instance");
    }
    return 0;
}

static json_t *presets(bool vm)
{
    json_t *spec = json_object();
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        const char *preset = vm && members[i].vm_preset ? members[i].vm_preset : members[i].preset;
        if (preset)
            json_object_set_new(spec, members[i].name, json_loads(preset, JSON_DECODE_ANY, NULL));
    }
    return spec;
}

static int finish(json_t *spec, json_t **ret_spec, struct err *err)
{
    int ret = spec ? check_together(spec, err) : err_set(err, ENOMEM, "instance");
    if (ret < 0)
        return ret;
    *ret_spec = json_incref(spec);
    return 0;
}

int instance_spec_check(const json_t *body, json_t **ret_spec, struct err *err)
{
    own_json json_t *spec = presets(!strcmp(json_text(body, "kind"), "vm"));
    int ret = take_members(body, true, spec, err);
    return ret < 0 ? ret : finish(spec, ret_spec, err);
}

int instance_spec_change(const json_t *spec, const json_t *changes, json_t **ret_spec, struct err *err)
{
    own_json json_t *changed = json_deep_copy(spec);
    int ret = take_members(changes, false, changed, err);
    return ret < 0 ? ret : finish(changed, ret_spec, err);
}
