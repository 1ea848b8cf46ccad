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

static bool set_profile(struct jit_options *options, const char *value)
{
    return set_switch(value, &options->profile);
}

static bool set_cache(struct jit_options *options, const char *value)
{
    uint64_t bytes;
    if (!size_parse(value, 1, &bytes) || bytes < CACHE_MIN || bytes > CACHE_MAX)
        return false;
    options->cache_bytes = bytes & ~UINT64_C(0xffff);
    return true;
}

static const struct {
    const char *name, *values;
    bool (*set)(struct jit_options *options, const char *value);
} table[] = {
    {"interpret", "on|off", set_interpret},
    {"cache", "1M..1G", set_cache},
    {"perf-map", "on|off", set_perf_map},
    {"profile", "on|off", set_profile},
};

static int set_one(struct jit_options *options, const char *name, const char *value, struct err *err)
{
    char known[128] = "";
    size_t length = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (!strcmp(name, table[i].name)) {
            if (table[i].set(options, value))
                return 0;
            return err_say(err, EINVAL, "%s=%s: give %s", name, value, table[i].values);
        }
        length += (size_t)snprintf(known + length, sizeof known - length, "%s%s=%s", i ? ", " : "", table[i].name,
                                   table[i].values);
    }
    return err_say(err, EINVAL, "no option '%s'; there is %s", name, known);
}

int jit_options_parse(const char *text, struct jit_options *ret_options, struct err *err)
{
    struct jit_options options = {.cache_bytes = CACHE_DEFAULT};
    char copy[256];
    if (!text)
        text = "";
    if ((size_t)snprintf(copy, sizeof copy, "%s", text) >= sizeof copy)
        return err_say(err, EINVAL, "options are too long");
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

#define JIT_OPT_NAME(id, name, text) [id] = (name),
#define JIT_OPT_LISTED(id, name, text) " " name
static const char *const opt_names[JIT_OPT_COUNT] = {JIT_OPTS(JIT_OPT_NAME)};
_Static_assert(JIT_OPT_COUNT < 32, "bits of jit_options.off");

/* The bits that a word of --jit-opt stands for; 0 when it is unknown. */
static uint32_t opt_bits(const char *word)
{
    if (strncmp(word, "no-", 3))
        return 0;
    if (!strcmp(word + 3, "all"))
        return (UINT32_C(1) << JIT_OPT_COUNT) - 1;
    for (unsigned i = 0; i < JIT_OPT_COUNT; i++)
        if (!strcmp(word + 3, opt_names[i]))
            return UINT32_C(1) << i;
    return 0;
}

int jit_options_parse_opt(const char *text, uint32_t *ret_off, struct err *err)
{
    uint32_t off = 0;
    char copy[256];
    if (text && (size_t)snprintf(copy, sizeof copy, "%s", text) >= sizeof copy)
        return err_say(err, EINVAL, "too long, no-all switches all off");
    char *rest = text ? copy : NULL, *word;
    while ((word = strsep(&rest, ","))) {
        uint32_t bits = opt_bits(word);
        if (!bits)
            return err_say(err, EINVAL, "unknown '%.32s', give no-NAME; names: all" JIT_OPTS(JIT_OPT_LISTED), word);
        off |= bits;
    }
    *ret_off = off;
    return 0;
}
