/* Arithmetic on iovecs: copies between them and flat buffers. Where an iovec points into guest memory, each byte is
 * touched once. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

static inline size_t iov_total(const struct iovec *iov, unsigned count)
{
    size_t total = 0;
    for (unsigned i = 0; i < count; i++)
        total += iov[i].iov_len;
    return total;
}

/* Copies up to `len` bytes from an iovec, starting `skip` bytes into it. Returns how many. */
static inline size_t iov_read(const struct iovec *iov, unsigned count, size_t skip, void *data, size_t len)
{
    size_t done = 0;
    for (unsigned i = 0; i < count && done < len; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t n = iov[i].iov_len - skip;
        n = n < len - done ? n : len - done;
        memcpy((uint8_t *)data + done, (const uint8_t *)iov[i].iov_base + skip, n);
        done += n;
        skip = 0;
    }
    __asm__ volatile("" ::: "memory"); /* the source may change under us: the copy is what counts from here on */
    return done;
}

/* The other way round. */
static inline size_t iov_write(const struct iovec *iov, unsigned count, size_t skip, const void *data, size_t len)
{
    size_t done = 0;
    for (unsigned i = 0; i < count && done < len; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t n = iov[i].iov_len - skip;
        n = n < len - done ? n : len - done;
        memcpy((uint8_t *)iov[i].iov_base + skip, (const uint8_t *)data + done, n);
        done += n;
        skip = 0;
    }
    return done;
}

/* Fills up to `len` bytes with zeroes, starting `skip` bytes into it. Returns how many. */
static inline size_t iov_zero(const struct iovec *iov, unsigned count, size_t skip, size_t len)
{
    size_t done = 0;
    for (unsigned i = 0; i < count && done < len; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t n = iov[i].iov_len - skip;
        n = n < len - done ? n : len - done;
        memset((uint8_t *)iov[i].iov_base + skip, 0, n);
        done += n;
        skip = 0;
    }
    return done;
}

/* Copies the part of an iovec that begins `skip` bytes into it and has `len` bytes; `out` has room for `count`
 * elements. Returns how many it took. */
static inline unsigned iov_slice(const struct iovec *iov, unsigned count, size_t skip, size_t len, struct iovec *out)
{
    unsigned used = 0;
    for (unsigned i = 0; i < count && len; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t n = iov[i].iov_len - skip;
        n = n < len ? n : len;
        out[used++] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, n};
        len -= n;
        skip = 0;
    }
    return used;
}

/* Drops the first `len` bytes in place: moves *iov and *count forward. */
static inline void iov_advance(struct iovec **iov, unsigned *count, size_t len)
{
    while (*count && len >= (*iov)->iov_len) {
        len -= (*iov)->iov_len;
        ++*iov;
        --*count;
    }
    if (!*count)
        return;
    (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + len;
    (*iov)->iov_len -= len;
}

/* Cuts to the first `len` bytes in place; returns the new count. */
static inline unsigned iov_truncate(struct iovec *iov, unsigned count, size_t len)
{
    unsigned used = 0;
    for (; used < count && len; used++) {
        if (iov[used].iov_len > len)
            iov[used].iov_len = len;
        len -= iov[used].iov_len;
    }
    return used;
}
