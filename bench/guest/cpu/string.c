/* Strings by libc (which picks AVX2 versions where the CPU offers it) and by hand. */
#include <string.h>

#include "kernels.h"

enum { TEXT = 1 << 18, NAMES = 4096 };
static char text[TEXT + 1], copy[TEXT + 64], names[NAMES][40];

static void text_setup(void)
{
    static const char *const words[] = {"dike", "water", "pump", "mill", "field", "canal", "sluice", "ditch"};
    struct random r = {41};
    size_t at = 0;
    while (at < TEXT - 16) {
        const char *word = words[random_next(&r) & 7];
        size_t length = strlen(word);
        memcpy(text + at, word, length);
        at += length;
        text[at++] = random_next(&r) & 15 ? ' ' : '\n';
    }
    memset(text + at, '.', TEXT - at);
    for (int i = 0; i < NAMES; i++) {
        size_t length = random_next(&r) % 32 + 1;
        for (size_t j = 0; j < length; j++)
            names[i][j] = (char)('a' + random_next(&r) % 26);
        names[i][length] = '\0';
    }
}

static uint64_t memcpy_round(void)
{
    struct random r = {43};
    uint64_t sum = 0;
    for (int i = 0; i < 40000; i++) {
        uint64_t x = random_next(&r);
        size_t length = x >> 20 & 0x3ff;
        memcpy(copy + (x & 63), text + (x >> 6 & 0x3fff), length);
        sum += (uint8_t)copy[(x & 63) + length / 2];
    }
    return sum;
}

static uint64_t strlen_round(void)
{
    uint64_t sum = 0;
    for (int pass = 0; pass < 100; pass++)
        for (int i = 0; i < NAMES; i++) {
            const char *name = names[i];
            OPAQUE(name);
            sum += strlen(name);
        }
    return sum;
}

static uint64_t memchr_round(void)
{
    uint64_t lines = 0;
    for (int pass = 0; pass < 16; pass++)
        for (const char *p = text; (p = memchr(p, '\n', (size_t)(text + TEXT - p))); p++)
            lines++;
    return lines;
}

static uint64_t strcmp_round(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < NAMES; i++)
        for (int j = 0; j < 64; j++)
            sum += strcmp(names[i], names[(i + j * 61) % NAMES]) > 0;
    return sum;
}

static uint64_t strstr_round(void)
{
    uint64_t sum = 0;
    static const char *const needles[] = {"sluice sluice sluice mill", "water pump canal\nditch", "not there"};
    for (size_t i = 0; i < KERNEL_COUNT(needles); i++)
        for (const char *p = text; (p = strstr(p, needles[i])); p++)
            sum = checksum_add(sum, (uint64_t)(p - text));
    return sum;
}

static uint64_t words_round(void)
{
    uint64_t words = 0, sum = 0;
    for (int pass = 0; pass < 4; pass++) {
        int in_word = 0;
        uint64_t hash = 5381;
        for (const char *p = text; *p; p++) {
            int letter = *p >= 'a' && *p <= 'z';
            if (letter) {
                hash = hash * 33 + (uint8_t)*p;
            } else if (in_word) {
                words++;
                sum += hash;
                hash = 5381;
            }
            in_word = letter;
        }
    }
    return checksum_add(sum, words);
}

const struct kernel kernels_string[] = {
    {.name = "memcpy-libc", .unit = "copy", .units = 40000, .round = memcpy_round, .setup = text_setup},
    {.name = "strlen-libc", .unit = "string", .units = 100.0 * NAMES, .round = strlen_round, .setup = text_setup},
    {.name = "memchr-libc", .unit = "byte", .units = 16.0 * TEXT, .round = memchr_round, .setup = text_setup},
    {.name = "strcmp-libc", .unit = "comparison", .units = 64.0 * NAMES, .round = strcmp_round, .setup = text_setup},
    {.name = "strstr-libc", .unit = "byte", .units = 3.0 * TEXT, .round = strstr_round, .setup = text_setup},
    {.name = "word-count", .unit = "byte", .units = 4.0 * TEXT, .round = words_round, .setup = text_setup},
};
const size_t kernels_string_count = KERNEL_COUNT(kernels_string);
