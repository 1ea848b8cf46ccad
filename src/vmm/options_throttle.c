#include "vmm/options_throttle.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/own.h"
#include "base/size.h"

static int parse_count(const char *name, const char *text, uint64_t most, uint64_t *ret_count, struct err *err)
{
    uint64_t count;
    if (!size_parse(text, 1, &count) || !count || count > most)
        return err_say(err, EINVAL, "'%s' is no %s: give 1 to %llu, also with K, M or G behind it", text, name,
                       (unsigned long long)most);
    *ret_count = count;
    return 0;
}

/* What `word` sets of a rate when it begins with `name`: "iops=", "iops-burst=", "iops-burst-s=". */
static int set_rate(struct throttle_rate *rate, const char *name, const char *word, struct err *err)
{
    uint64_t number;
    size_t len = strlen(name);
    const char *part = word + len, *value = strchr(word, '=');
    if (strncmp(word, name, len) != 0 || !value)
        return 0;
    bool is_rate = *part == '=', is_burst = !strncmp(part, "-burst=", 7), is_length = !strncmp(part, "-burst-s=", 9);
    if (!is_rate && !is_burst && !is_length)
        return 0;
    int r = parse_count(is_length ? "length" : "rate", value + 1, is_length ? 3600 : UINT64_C(1) << 50, &number, err);
    if (r < 0)
        return r;
    if (is_length)
        rate->burst_s = (unsigned)number;
    else
        *(is_rate ? &rate->rate : &rate->burst) = number;
    return 1;
}

static int set_word(struct throttle_limits *limits, const char *word, struct err *err)
{
    for (enum throttle_kind kind = 0; kind < THROTTLE_KINDS; kind++) {
        int r = set_rate(&limits->rates[kind], throttle_kind_name(kind), word, err);
        if (r != 0)
            return r < 0 ? r : 0;
    }
    return err_say(err, EINVAL, "unknown word '%s', give iops=, bps=, with read- or write- in front, with -burst or -burst-s behind", word);
}

int options_add_throttle(struct vm_config *config, const char *text, struct err *err)
{
    own_free char *copy = strdup(text);
    if (!copy)
        return err_set(err, ENOMEM, "throttle");
    char *rest = copy, *name = strsep(&rest, ",");
    if (!*name || strchr(name, '='))
        return err_say(err, EINVAL, "'%s' begins with no name, give NAME,iops=N or the like", text);
    struct vm_throttle *throttle = NULL;
    int r = vm_config_add_throttle(config, name, &throttle, err);
    if (r < 0)
        return r;
    while (r == 0 && rest)
        r = set_word(&throttle->limits, strsep(&rest, ","), err);
    return r < 0 ? r : throttle_check(&throttle->limits, NULL, 0, err);
}

int options_throttle_word(struct vm_disk *disk, const char *word, struct err *err)
{
    uint64_t weight;
    int r;
    if (!strncmp(word, "throttle=", 9))
        r = vm_config_set(&disk->throttle, word + 9, err);
    else if (!strncmp(word, "reserve=", 8))
        r = parse_count("reservation", word + 8, UINT64_C(1) << 50, &disk->share.reservation, err);
    else if (!strncmp(word, "limit=", 6))
        r = parse_count("limit", word + 6, UINT64_C(1) << 50, &disk->share.limit, err);
    else if (!strncmp(word, "weight=", 7)) {
        r = parse_count("weight", word + 7, 10000, &weight, err);
        disk->share.weight = r == 0 ? (unsigned)weight : 0;
    } else
        return 0;
    return r < 0 ? r : 1;
}
