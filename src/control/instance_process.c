/* The main process of an instance: what the image says, changed by what the spec says. */
#include "control/instance_spec.h"

#include <errno.h>
#include <string.h>
#include "control/json.h"

#define PATH_DEFAULT "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Appends `entry`, or puts it in the place of the one with the same key. */
static void env_put(json_t *env, const char *entry)
{
    size_t key = strcspn(entry, "=") + 1;
    size_t i;
    json_t *old;
    json_array_foreach (env, i, old) {
        if (!strncmp(json_string_value(old), entry, key)) {
            json_array_set_new(env, i, json_string(entry));
            return;
        }
    }
    json_array_append_new(env, json_string(entry));
}

static void env_put_all(json_t *env, const json_t *from)
{
    size_t i;
    json_t *entry;
    json_array_foreach (from, i, entry) {
        const char *text = json_string_value(entry);
        if (text && strchr(text, '='))
            env_put(env, text);
    }
}

static json_t *merge_env(const json_t *spec, const json_t *image)
{
    json_t *env = json_array();
    env_put(env, PATH_DEFAULT);
    if (json_flag(spec, "tty"))
        env_put(env, "TERM=xterm");
    env_put_all(env, json_object_get(image, "env"));
    env_put_all(env, json_object_get(spec, "env"));
    return env;
}

static json_t *merge_args(const json_t *spec, const json_t *image)
{
    json_t *args = json_array();
    const json_t *entrypoint = json_object_get(spec, "entrypoint");
    const json_t *command = json_object_get(spec, "command");
    bool own_command = json_array_size(command) > 0;
    if (entrypoint) {
        json_array_extend(args, (json_t *)(uintptr_t)entrypoint);
    } else {
        json_array_extend(args, json_object_get(image, "entrypoint"));
        if (!own_command)
            command = json_object_get(image, "cmd");
    }
    json_array_extend(args, (json_t *)(uintptr_t)command);
    return args;
}

static const char *either(const json_t *spec, const json_t *image, const char *name, const char *preset)
{
    if (*json_text(spec, name))
        return json_text(spec, name);
    return *json_text(image, name) ? json_text(image, name) : preset;
}

int instance_spec_process(const json_t *spec, const json_t *image, json_t **ret_process, struct err *err)
{
    own_json json_t *args = merge_args(spec, image);
    if (!json_array_size(args) || !*json_string_value(json_array_get(args, 0)))
        return err_say(err, EINVAL, "image '%s' has no command of its own: give one", json_text(spec, "image"));
    json_t *process = json_pack("{s:O, s:o, s:s, s:s, s:b, s:b}", "args", args, "env", merge_env(spec, image), "user",
                                either(spec, image, "user", ""), "cwd", either(spec, image, "workdir", "/"), "tty",
                                json_flag(spec, "tty"), "stdin", json_flag(spec, "stdin"));
    if (!process)
        return err_set(err, ENOMEM, "process");
    *ret_process = process;
    return 0;
}
