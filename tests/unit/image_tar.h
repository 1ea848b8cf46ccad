/* Writes tars as hostile as one likes: ustar headers by hand (POSIX.1-1988), pax records in front of them. */
#pragma once

#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct tar {
    uint8_t *bytes;
    size_t len;
};

struct tar_entry {
    const char *name, *link, *content;
    char type; /* 0: '0', a file */
    unsigned mode; /* 0: 0644, of folders 0755 */
    int64_t uid, size; /* size: when it is to lie; uid -1: of no user */
};

static inline void tar_block(struct tar *tar, const void *bytes, size_t len)
{
    size_t padded = (len + 511) / 512 * 512;
    tar->bytes = realloc(tar->bytes, tar->len + padded);
    assert(tar->bytes);
    memset(tar->bytes + tar->len, 0, padded);
    memcpy(tar->bytes + tar->len, bytes, len);
    tar->len += padded;
}

/* Base 256 where octal digits end. */
static inline void tar_number(char *field, size_t width, int64_t number)
{
    if (number >= 0 && number < (INT64_C(1) << (3 * (width - 1)))) {
        char digits[32];
        snprintf(digits, sizeof digits, "%0*llo", (int)width - 1, (unsigned long long)number);
        memcpy(field, digits, width - 1);
        return;
    }
    for (size_t i = 0; i < width; i++)
        field[width - 1 - i] = (char)(i < 8 ? number >> (8 * i) : number < 0 ? -1 : 0);
    field[0] = (char)(field[0] | 0x80);
}

static inline void tar_add(struct tar *tar, struct tar_entry entry)
{
    char h[512] = "";
    size_t len = entry.content ? strlen(entry.content) : 0;
    unsigned sum = 0;
    memcpy(h, entry.name, strnlen(entry.name, 100));
    tar_number(h + 100, 8, entry.mode ? entry.mode : entry.type == '5' ? 0755 : 0644);
    tar_number(h + 108, 8, entry.uid ? entry.uid : (int64_t)geteuid());
    tar_number(h + 116, 8, (int64_t)getegid());
    tar_number(h + 124, 12, entry.size ? entry.size : (int64_t)len);
    tar_number(h + 136, 12, 1000000000);
    memset(h + 148, ' ', 8);
    h[156] = entry.type ? entry.type : '0';
    if (entry.link)
        memcpy(h + 157, entry.link, strnlen(entry.link, 100));
    memcpy(h + 257, "ustar\0" "00", 8);
    for (unsigned i = 0; i < 512; i++)
        sum += (uint8_t)h[i];
    snprintf(h + 148, 8, "%06o", sum);
    tar_block(tar, h, sizeof h);
    if (len)
        tar_block(tar, entry.content, len);
}

/* One pax record for the entry that follows. */
static inline void tar_pax(struct tar *tar, const char *key, const char *value)
{
    size_t len = strlen(key) + strlen(value) + 3, whole = len + 1;
    char *record = malloc(len + 32);
    while (whole != len + (size_t)snprintf(record, 32, "%zu", whole))
        whole++;
    snprintf(record, len + 32, "%zu %s=%s\n", whole, key, value);
    tar_add(tar, (struct tar_entry){.name = "pax", .type = 'x', .content = record});
    free(record);
}

static inline void tar_end(struct tar *tar)
{
    static const uint8_t zeroes[1024];
    tar_block(tar, zeroes, sizeof zeroes);
}
