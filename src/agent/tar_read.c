#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>

#include "agent/tar_impl.h"
#include "base/own.h"

#define SIZE_MAX_BYTES (UINT64_C(1) << 62)

static int read_exactly(struct tar_reader *r, void *to, size_t len, struct err *err)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = r->read(r->arg, (char *)to + done, len - done);
        if (n < 0)
            return err_set(err, errno, "read the archive");
        if (n == 0)
            return err_say(err, EPROTO, "the archive ends in the midst");
        done += (size_t)n;
    }
    return 0;
}

static int skip(struct tar_reader *r, uint64_t len, struct err *err)
{
    char buffer[4096];
    int result = 0;
    while (len && result == 0) {
        size_t part = len < sizeof buffer ? (size_t)len : sizeof buffer;
        result = read_exactly(r, buffer, part, err);
        len -= part;
    }
    return result;
}

ssize_t tar_read_data(struct tar_reader *r, void *to, size_t len, struct err *err)
{
    if (len > r->left_bytes)
        len = (size_t)r->left_bytes;
    int result = read_exactly(r, to, len, err);
    if (result < 0)
        return result;
    r->left_bytes -= len;
    return (ssize_t)len;
}

/* Octal text, or GNU's base-256 (first bit set). False when it is neither or too large. */
static bool parse_number(const char *field, size_t len, uint64_t *ret_value)
{
    uint64_t value = 0;
    if ((unsigned char)field[0] == 0x80) {
        for (size_t i = 1; i < len; i++) {
            if (value > SIZE_MAX_BYTES >> 8)
                return false;
            value = value << 8 | (unsigned char)field[i];
        }
        *ret_value = value;
        return true;
    }
    size_t i = 0;
    while (i < len && field[i] == ' ')
        i++;
    for (; i < len && field[i] >= '0' && field[i] <= '7'; i++)
        value = value << 3 | (uint64_t)(field[i] - '0');
    *ret_value = value;
    return i == len || field[i] == 0 || field[i] == ' ';
}

#define NUMBER(field, ret) parse_number((field), sizeof(field), (ret))

static int load_header(const struct tar_header *h, struct tar_entry *e, struct err *err)
{
    uint64_t sum, mode, uid, gid, size, mtime, major = 0, minor = 0;
    if (!NUMBER(h->checksum, &sum) || sum != tar_checksum(h))
        return err_say(err, EPROTO, "this is no tar archive, or a damaged one");
    bool is_device = h->type == '3' || h->type == '4';
    if (!NUMBER(h->mode, &mode) || !NUMBER(h->uid, &uid) || !NUMBER(h->gid, &gid) || !NUMBER(h->size, &size) ||
        !NUMBER(h->mtime, &mtime) || (is_device && (!NUMBER(h->major, &major) || !NUMBER(h->minor, &minor))))
        return err_say(err, EPROTO, "a malformed number in the archive");
    if (size > SIZE_MAX_BYTES || uid > UINT32_MAX - 1 || gid > UINT32_MAX - 1 || major > UINT16_MAX || minor > 0xfffff)
        return err_say(err, EPROTO, "a number out of range in the archive");
    e->type = h->type == 0 || h->type == '7' ? '0' : h->type;
    e->mode = (unsigned)mode & 07777;
    e->uid = (unsigned)uid;
    e->gid = (unsigned)gid;
    e->size_bytes = size;
    e->mtime = mtime > INT64_MAX ? 0 : (int64_t)mtime;
    e->major = (unsigned)major;
    e->minor = (unsigned)minor;
    return 0;
}

/* The names of the header, where no extended one gave others. */
static void load_names(const struct tar_header *h, struct tar_entry *e)
{
    bool has_prefix = !memcmp(h->magic, "ustar", 6) && h->prefix[0];
    if (!e->link[0])
        snprintf(e->link, sizeof e->link, "%.100s", h->link);
    if (!e->name[0])
        snprintf(e->name, sizeof e->name, "%.155s%s%.100s", has_prefix ? h->prefix : "", has_prefix ? "/" : "", h->name);
}

/* What extended headers say about the entry that follows. */
struct extended {
    bool has_size, has_uid, has_gid, has_mtime;
    uint64_t size, uid, gid, mtime;
};

static int set_path(char to[PATH_MAX], const char *value, size_t len, struct err *err)
{
    if (len >= PATH_MAX || memchr(value, 0, len))
        return err_say(err, EPROTO, "a name in the archive is too long or malformed");
    memcpy(to, value, len);
    to[len] = 0;
    return 0;
}

static int take_record(struct extended *x, struct tar_entry *e, const char *key, const char *value, size_t len,
                       struct err *err)
{
    if (!strcmp(key, "path"))
        return set_path(e->name, value, len, err);
    if (!strcmp(key, "linkpath"))
        return set_path(e->link, value, len, err);
    const struct {
        const char *key;
        bool *has;
        uint64_t *value;
    } numbers[] = {{"size", &x->has_size, &x->size}, {"uid", &x->has_uid, &x->uid}, {"gid", &x->has_gid, &x->gid},
                   {"mtime", &x->has_mtime, &x->mtime}};
    for (unsigned i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        if (strcmp(key, numbers[i].key) != 0)
            continue;
        uint64_t n = 0;
        size_t at = 0;
        for (; at < len && value[at] >= '0' && value[at] <= '9' && n < SIZE_MAX_BYTES / 10; at++)
            n = n * 10 + (uint64_t)(value[at] - '0');
        if (at == 0 || (at < len && value[at] != '.'))
            return err_say(err, EPROTO, "a malformed number in the archive");
        *numbers[i].has = true;
        *numbers[i].value = n;
    }
    return 0;
}

/* Records "LENGTH KEY=VALUE\n", where the length counts the whole record. `text` has a 0 behind its end. */
static int take_records(struct extended *x, struct tar_entry *e, char *text, size_t len, struct err *err)
{
    for (size_t at = 0; at < len;) {
        char *end, *record = text + at;
        unsigned long size = record[0] >= '0' && record[0] <= '9' ? strtoul(record, &end, 10) : 0;
        if (size < 5 || size > len - at || *end != ' ' || record[size - 1] != '\n')
            return err_say(err, EPROTO, "a malformed extended header in the archive");
        char *key = end + 1, *last = record + size - 1;
        char *equals = key < last ? memchr(key, '=', (size_t)(last - key)) : NULL;
        if (!equals)
            return err_say(err, EPROTO, "a malformed extended header in the archive");
        *equals = 0;
        int r = take_record(x, e, key, equals + 1, (size_t)(last - equals - 1), err);
        if (r < 0)
            return r;
        at += size;
    }
    return 0;
}

static int take_extended(struct tar_reader *r, char type, uint64_t size, struct extended *x, struct tar_entry *e,
                         struct err *err)
{
    if (size > TAR_EXTENDED_MAX)
        return err_say(err, EPROTO, "an extended header of the archive is too long");
    own_free char *text = malloc((size_t)size + 1);
    if (!text)
        return err_set(err, ENOMEM, "archive");
    int result = read_exactly(r, text, (size_t)size, err);
    if (result == 0)
        result = skip(r, -size % TAR_BLOCK, err);
    if (result < 0)
        return result;
    text[size] = 0;
    if (type == 'x')
        return take_records(x, e, text, (size_t)size, err);
    return set_path(type == 'L' ? e->name : e->link, text, strnlen(text, (size_t)size), err);
}

static void apply(const struct extended *x, struct tar_entry *e)
{
    if (x->has_size)
        e->size_bytes = x->size;
    if (x->has_uid && x->uid < UINT32_MAX)
        e->uid = (unsigned)x->uid;
    if (x->has_gid && x->gid < UINT32_MAX)
        e->gid = (unsigned)x->gid;
    if (x->has_mtime)
        e->mtime = (int64_t)x->mtime;
}

int tar_read_next(struct tar_reader *r, struct tar_entry *e, struct err *err)
{
    static const struct tar_header zero;
    struct extended x = {0};
    int result = skip(r, r->left_bytes + r->padding_bytes, err);
    r->left_bytes = r->padding_bytes = 0;
    e->name[0] = e->link[0] = 0;
    while (result == 0) {
        struct tar_header h;
        result = read_exactly(r, &h, sizeof h, err);
        if (result == 0 && !memcmp(&h, &zero, sizeof h))
            return 0;
        if (result == 0)
            result = load_header(&h, e, err);
        if (result < 0)
            return result;
        if (e->type == 'x' || e->type == 'L' || e->type == 'K') {
            result = take_extended(r, e->type, e->size_bytes, &x, e, err);
        } else if (e->type == 'g') {
            result = skip(r, e->size_bytes + (-e->size_bytes % TAR_BLOCK), err);
        } else {
            load_names(&h, e);
            apply(&x, e);
            r->left_bytes = e->type == '0' ? e->size_bytes : 0;
            r->padding_bytes = -r->left_bytes % TAR_BLOCK;
            return 1;
        }
    }
    return result;
}
