#include "base/size.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool size_parse(const char *text, uint64_t unit, uint64_t *ret_bytes)
{
    if (!isdigit((unsigned char)*text))
        return false;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno)
        return false;
    uint64_t factor = unit;
    if (*end) {
        const char *suffixes = "KMGT";
        const char *at = strchr(suffixes, toupper((unsigned char)*end));
        if (!at || (end[1] && strcasecmp(end + 1, "b") && strcasecmp(end + 1, "ib")))
            return false;
        factor = UINT64_C(1) << (10 * (at - suffixes + 1));
    }
    if (value > INT64_MAX / factor)
        return false;
    *ret_bytes = value * factor;
    return true;
}
