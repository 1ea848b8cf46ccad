#include "cpu/jit/jit_options.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"

#define CACHE_DEFAULT (UINT64_C(64) << 20)
#define CACHE_MIN (UINT64_C(1) << 20)
#define CACHE_MAX (UINT64_C(1) << 30) /* code is reached by 32-bit displacements */

static bool set_switch(const char *value, bool *ret_on)
{
    *ret_on = !strcmp(value, "on");
    return *ret_on || !strcmp(value, "off");
}

static bool set_interpret(struct jit_options *options, const char *value)
{
    return set_switch(value, &options->interpret);
}

static bool set_perf_map(struct jit_options *options, const char *value)
{
    return set_switch(value, &options->perf_map);
}

static bool set_cache(struct jit_options *options, const char *value)
{
    uint64_t bytes;
    if (!size_parse(value, 1, &bytes) || bytes < CACHE_MIN || bytes > CACHE_MAX)
        return false;
    options->cache_bytes = bytes & ~UINT64_C(0xffff);
    return true;
}

/* Optimisations are on; each can be turned off by itself, to find out what it gives and what it breaks. */
static bool set_opt(struct jit_options *options, const char *value)
{
    if (!strcmp(value, "no-flagless"))
        options->no_flagless = true;
    else if (!strcmp(value, "no-near"))
        options->no_near = true;
    else if (!strcmp(value, "no-gather"))
        options->no_gather = true;
    else
        return false;
    return true;
}

static const struct {
    const char *name, *values;
    bool (*set)(struct jit_options *options, const char *value);
} table[] = {
    {"interpret", "on|off", set_interpret},
    {"cache", "1M..1G", set_cache},
    {"perf-map", "on|off", set_perf_map},
    {"opt", "no-flagless|no-near|no-gather", set_opt},
};

static int set_one(struct jit_options *options, const char *name, const char *value, struct err *err)
{
    char known[128] = "";
    size_t length = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (!strcmp(name, table[i].name)) {
            if (table[i].set(options, value))
                return 0;
            return err_say(err, EINVAL, "jit: %s=%s: give %s", name, value, table[i].values);
        }
        length += (size_t)snprintf(known + length, sizeof known - length, "%s%s=%s", i ? ", " : "", table[i].name,
                                   table[i].values);
    }
    return err_say(err, EINVAL, "jit: no option '%s'; there is %s", name, known);
}

int jit_options_parse(const char *text, struct jit_options *ret_options, struct err *err)
{
    struct jit_options options = {.cache_bytes = CACHE_DEFAULT};
    char copy[256];
    if (!text)
        text = "";
    if ((size_t)snprintf(copy, sizeof copy, "%s", text) >= sizeof copy)
        return err_say(err, EINVAL, "jit: options are too long");
    char *rest = copy, *item;
    while ((item = strsep(&rest, ","))) {
        if (!*item)
            continue;
        char *value = strchr(item, '=');
        if (value)
            *value++ = '\0';
        int r = set_one(&options, item, value ? value : "", err);
        if (r < 0)
            return r;
    }
    *ret_options = options;
    return 0;
}
