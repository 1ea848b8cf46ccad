#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent/tar_impl.h"

#define OCTAL_SIZE_MAX 077777777777u /* what eleven digits hold: 8 GiB less one */
#define OCTAL_ID_MAX 07777777u

int tar_write_all(int fd, const void *data, size_t len, struct err *err)
{
    for (const char *at = data; len;) {
        ssize_t n = write(fd, at, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, errno, "write the archive");
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

int tar_write_padding(int fd, uint64_t size_bytes, struct err *err)
{
    static const char zeroes[TAR_BLOCK];
    return tar_write_all(fd, zeroes, (size_t)(-size_bytes % TAR_BLOCK), err);
}

int tar_write_end(int fd, struct err *err)
{
    static const char zeroes[2 * TAR_BLOCK];
    return tar_write_all(fd, zeroes, sizeof zeroes, err);
}

static void put_octal(char *field, size_t len, uint64_t value)
{
    for (size_t i = len - 1; i-- > 0; value >>= 3)
        field[i] = (char)('0' + (value & 7));
}

#define OCTAL(field, value) put_octal((field), sizeof(field), (value))

static int write_block(int fd, const struct tar_entry *e, char type, uint64_t size, struct err *err)
{
    struct tar_header h = {.type = type, .magic = "ustar"};
    memcpy(h.magic + 6, "00", 2);
    memcpy(h.name, e->name, strnlen(e->name, sizeof h.name));
    memcpy(h.link, e->link, strnlen(e->link, sizeof h.link));
    OCTAL(h.mode, e->mode);
    OCTAL(h.uid, e->uid > OCTAL_ID_MAX ? 0 : e->uid);
    OCTAL(h.gid, e->gid > OCTAL_ID_MAX ? 0 : e->gid);
    OCTAL(h.size, size > OCTAL_SIZE_MAX ? 0 : size);
    OCTAL(h.mtime, e->mtime < 0 ? 0 : (uint64_t)e->mtime);
    OCTAL(h.major, e->major);
    OCTAL(h.minor, e->minor);
    snprintf(h.checksum, sizeof h.checksum, "%06o", tar_checksum(&h));
    h.checksum[7] = ' ';
    return tar_write_all(fd, &h, sizeof h, err);
}

/* Appends the record "LENGTH KEY=VALUE\n", whose length counts its own digits. */
static void append_record(char *text, size_t *len, const char *key, const char *value)
{
    size_t body = strlen(key) + strlen(value) + 3, total = body + 1, digits = 0;
    while (digits != total - body) {
        digits = total - body;
        total = body + (size_t)snprintf(NULL, 0, "%zu", body + digits);
    }
    *len += (size_t)sprintf(text + *len, "%zu %s=%s\n", total, key, value);
}

static void append_number(char *text, size_t *len, const char *key, uint64_t value)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
    append_record(text, len, key, digits);
}

/* What the header's fields cannot hold. */
static int write_extended(int fd, const struct tar_entry *e, struct err *err)
{
    char text[2 * PATH_MAX + 256];
    size_t len = 0;
    if (strlen(e->name) > sizeof((struct tar_header *)0)->name)
        append_record(text, &len, "path", e->name);
    if (strlen(e->link) > sizeof((struct tar_header *)0)->link)
        append_record(text, &len, "linkpath", e->link);
    if (e->size_bytes > OCTAL_SIZE_MAX)
        append_number(text, &len, "size", e->size_bytes);
    if (e->uid > OCTAL_ID_MAX)
        append_number(text, &len, "uid", e->uid);
    if (e->gid > OCTAL_ID_MAX)
        append_number(text, &len, "gid", e->gid);
    if (!len)
        return 0;
    static const struct tar_entry extended = {.name = "pax", .mode = 0644};
    int r = write_block(fd, &extended, 'x', len, err);
    if (r == 0)
        r = tar_write_all(fd, text, len, err);
    return r < 0 ? r : tar_write_padding(fd, len, err);
}

int tar_write_header(int fd, const struct tar_entry *e, struct err *err)
{
    int r = write_extended(fd, e, err);
    return r < 0 ? r : write_block(fd, e, e->type, e->size_bytes, err);
}
