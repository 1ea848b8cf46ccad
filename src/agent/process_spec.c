#include "agent/process_spec.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Appends the array's strings; refuses anything else. `need_value`: each has a name and '='. */
static int append_strings(const char **to, size_t *count, const json_t *array, bool need_value, struct err *err)
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        const char *text = json_string_value(json_array_get(array, i));
        if (!text || *count == PROCESS_STRINGS_MAX)
            return err_say(err, EINVAL, "arguments and variables are strings, at most %d", PROCESS_STRINGS_MAX);
        if (need_value && (text[0] == '=' || !strchr(text, '=')))
            return err_say(err, EINVAL, "variable '%.80s' is not of the form NAME=VALUE", text);
        to[(*count)++] = text;
    }
    return 0;
}

unsigned process_number(const json_t *json, const char *key, unsigned max, unsigned fallback)
{
    const json_t *value = json_object_get(json, key);
    json_int_t number = json_is_integer(value) ? json_integer_value(value) : -1;
    return number < 0 || number > max ? fallback : (unsigned)number;
}

int process_spec_load(const json_t *json, const json_t *base_env, struct process_spec *ret_spec, struct err *err)
{
    struct process_spec spec = {.args = calloc(PROCESS_STRINGS_MAX + 1, sizeof(char *)),
                                .env = calloc(PROCESS_STRINGS_MAX + 1, sizeof(char *))};
    size_t args = 0, env = 0;
    int r = spec.args && spec.env ? 0 : err_set(err, ENOMEM, "process");
    if (r == 0)
        r = append_strings(spec.args, &args, json_object_get(json, "args"), false, err);
    if (r == 0 && args == 0)
        r = err_say(err, EINVAL, "\"args\" is empty: no program to run");
    if (r == 0)
        r = append_strings(spec.env, &env, base_env, true, err);
    if (r == 0)
        r = append_strings(spec.env, &env, json_object_get(json, "env"), true, err);
    if (r < 0) {
        process_spec_free(&spec);
        return r;
    }
    union {
        const char **in;
        char *const *out;
    } args_are = {spec.args}, env_are = {spec.env}; /* as exec wants them; nobody writes them */
    spec.child = (struct child_spec){
        .args = args_are.out,
        .env = env_are.out,
        .user = json_string_value(json_object_get(json, "user")),
        .cwd = json_string_value(json_object_get(json, "cwd")),
        .tty = json_is_true(json_object_get(json, "tty")),
        .use_stdin = json_is_true(json_object_get(json, "stdin")),
        .rows = process_number(json, "rows", 10000, 0),
        .cols = process_number(json, "cols", 10000, 0),
    };
    *ret_spec = spec;
    return 0;
}

void process_spec_free(struct process_spec *spec)
{
    free(spec->args);
    free(spec->env);
}

int process_signal(const json_t *json, int *ret_signal, struct err *err)
{
    const char *name = json_string_value(json);
    long number = json_is_integer(json) ? (long)json_integer_value(json) : 0;
    if (name && name[0] >= '0' && name[0] <= '9')
        number = strtol(name, NULL, 10);
    if (name && !strncasecmp(name, "SIG", 3))
        name += 3;
    for (int s = 1; name && number == 0 && s < NSIG; s++)
        if (sigabbrev_np(s) && !strcasecmp(name, sigabbrev_np(s)))
            number = s;
    if (number < 1 || number >= NSIG)
        return err_say(err, EINVAL, "no such signal; give a name like TERM or a number");
    *ret_signal = (int)number;
    return 0;
}
