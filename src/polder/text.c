#include "polder/text.h"

#include <langinfo.h>
#include <string.h>
#include <wchar.h>

void text_size(char text[TEXT_SHORT], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    unsigned unit = 0;
    for (; value >= 1000 && unit < 6; unit++)
        value /= 1024;
    bool fraction = unit && value < 9.95 && (uint64_t)(value * 10 + 0.5) % 10;
    snprintf(text, TEXT_SHORT, fraction ? "%.1f %s" : "%.0f %s", value, units[unit]);
}

void text_span(char text[TEXT_SHORT], int64_t seconds)
{
    static const struct {
        int64_t seconds, limit;
        const char *unit;
    } units[] = {{1, 120, "s"}, {60, 7200, "min"}, {3600, 48 * 3600, "h"}, {86400, INT64_MAX, "days"}};
    unsigned i = 0;
    seconds = seconds < 0 ? 0 : seconds;
    while (seconds >= units[i].limit)
        i++;
    snprintf(text, TEXT_SHORT, "%lld %s", (long long)(seconds / units[i].seconds), units[i].unit);
}

bool text_parse_time(const char *text, time_t *ret_time)
{
    struct tm tm = {0};
    int end = 0;
    if (sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &end) != 6)
        return false;
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    text += end;
    if (*text == '.')
        text += 1 + strspn(text + 1, "0123456789");
    int hours = 0, minutes = 0;
    char sign = '+';
    if (*text != 'Z' && sscanf(text, "%c%2d:%2d", &sign, &hours, &minutes) != 3)
        return false;
    time_t offset = hours * 3600 + minutes * 60;
    *ret_time = timegm(&tm) - (sign == '-' ? -offset : offset);
    return true;
}

/* Decodes one character; 0 bytes: not UTF-8 (overlong forms and surrogates included). */
static unsigned decode(const char *in, uint32_t *ret_code)
{
    const unsigned char *s = (const unsigned char *)in;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned length = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    uint32_t code = length == 1 ? s[0] : s[0] & (0x7fu >> length);
    for (unsigned i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (s[i] & 0x3f);
    }
    if (!length || code < least[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        return 0;
    *ret_code = code;
    return length;
}

static bool is_harmless(uint32_t code, const char *keep)
{
    if (code < 0x20)
        return code && strchr(keep, (int)code);
    bool turns = code == 0x061c || code == 0x200e || code == 0x200f || (code >= 0x2028 && code <= 0x202e) ||
                 (code >= 0x2066 && code <= 0x2069) || code == 0xfeff;
    return !(code >= 0x7f && code < 0xa0) && !turns;
}

/* The harmless form of what `*in` begins with, which is moved behind it. Returns its length in bytes. */
static unsigned clean_one(const char **in, const char *keep, char out[4])
{
    uint32_t code = 0;
    unsigned length = decode(*in, &code);
    bool harmless = length && is_harmless(code, keep);
    if (harmless)
        memcpy(out, *in, length);
    else
        out[0] = '?';
    *in += length ? length : 1;
    return harmless ? length : 1;
}

size_t text_clean(char *out, size_t size, const char *in, const char *keep)
{
    size_t used = 0;
    char one[4];
    while (*in) {
        unsigned length = clean_one(&in, keep, one);
        if (used + length >= size)
            break;
        memcpy(out + used, one, length);
        used += length;
    }
    out[used] = '\0';
    return used;
}

void text_print(FILE *out, const char *in, const char *keep)
{
    char one[4];
    while (*in) {
        unsigned length = clean_one(&in, keep, one);
        fwrite(one, 1, length, out);
    }
}

static unsigned columns_of(uint32_t code)
{
    int width = code >= 0x20 && code < 0x7f ? 1 : wcwidth((wchar_t)code); /* most are, and wcwidth() is slow */
    return width < 0 ? 1 : (unsigned)width;
}

unsigned text_width(const char *text)
{
    unsigned columns = 0;
    while (*text) {
        uint32_t code = 0;
        unsigned length = decode(text, &code);
        columns += length ? columns_of(code) : 1;
        text += length ? length : 1;
    }
    return columns;
}

void text_cut(char *text, size_t size, unsigned columns)
{
    if (text_width(text) <= columns || !columns)
        return;
    const char *mark = strcmp(nl_langinfo(CODESET), "UTF-8") == 0 ? "…" : "~";
    char *at = text;
    for (unsigned used = 0; *at;) {
        uint32_t code = 0;
        unsigned length = decode(at, &code);
        used += length ? columns_of(code) : 1;
        if (used > columns - 1)
            break;
        at += length ? length : 1;
    }
    snprintf(at, size - (size_t)(at - text), "%s", mark);
}

unsigned text_distance(const char *a, const char *b)
{
    enum { MAX = 64 };
    unsigned rows[3][MAX + 1], *before = rows[0], *last = rows[1], *row = rows[2];
    size_t a_len = strnlen(a, MAX), b_len = strnlen(b, MAX);
    for (unsigned j = 0; j <= b_len; j++)
        before[j] = last[j] = j;
    for (unsigned i = 1; i <= a_len; i++) {
        row[0] = i;
        for (unsigned j = 1; j <= b_len; j++) {
            unsigned cost = last[j - 1] + (a[i - 1] != b[j - 1]);
            cost = last[j] + 1 < cost ? last[j] + 1 : cost;
            cost = row[j - 1] + 1 < cost ? row[j - 1] + 1 : cost;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < cost)
                cost = before[j - 2] + 1;
            row[j] = cost;
        }
        unsigned *free_row = before;
        before = last;
        last = row;
        row = free_row;
    }
    return last[b_len];
}

bool text_is_near(const char *word, const char *candidate, unsigned *best)
{
    unsigned distance = text_distance(word, candidate), longest = (unsigned)strlen(word);
    unsigned limit = longest < 4 ? 1 : longest < 8 ? 2 : 3;
    if (distance > limit || distance >= *best)
        return false;
    *best = distance;
    return true;
}
