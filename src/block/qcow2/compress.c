/* Compressed clusters: raw deflate streams with a window of 4 KiB, as other writers make them, or zstd frames. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "block/qcow2/qcow2_impl.h"

#define WINDOW_BITS (-12)

struct compressor {
    z_stream zlib;
    ZSTD_CCtx *zstd; /* NULL: zlib */
};

struct compressor *compressor_new(unsigned type)
{
    struct compressor *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    if (type == COMPRESSION_ZSTD)
        c->zstd = ZSTD_createCCtx();
    if (type == COMPRESSION_ZSTD ? c->zstd != NULL
                                 : deflateInit2(&c->zlib, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WINDOW_BITS, 9, Z_DEFAULT_STRATEGY) == Z_OK)
        return c;
    free(c);
    return NULL;
}

void compressor_free(struct compressor *c)
{
    if (!c)
        return;
    if (c->zstd)
        ZSTD_freeCCtx(c->zstd);
    else
        deflateEnd(&c->zlib);
    free(c);
}

int compress_cluster(struct compressor *c, const void *from, size_t len, void *to, size_t room)
{
    if (c->zstd) {
        size_t r = ZSTD_compressCCtx(c->zstd, to, room, from, len, ZSTD_CLEVEL_DEFAULT);
        return ZSTD_isError(r) ? -ENOSPC : (int)r;
    }
    if (deflateReset(&c->zlib) != Z_OK)
        return -EIO;
    c->zlib.next_in = (Bytef *)(uintptr_t)from;
    c->zlib.avail_in = (uInt)len;
    c->zlib.next_out = to;
    c->zlib.avail_out = (uInt)room;
    return deflate(&c->zlib, Z_FINISH) == Z_STREAM_END ? (int)(room - c->zlib.avail_out) : -ENOSPC;
}

static int inflate_cluster(const void *from, size_t len, void *to, size_t size)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)from, .avail_in = (uInt)len, .next_out = to, .avail_out = (uInt)size};
    if (inflateInit2(&z, WINDOW_BITS) != Z_OK)
        return -ENOMEM;
    int r = inflate(&z, Z_FINISH);
    bool full = (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0;
    inflateEnd(&z);
    return full ? 0 : -EIO;
}

static int zstd_decompress(const void *from, size_t len, void *to, size_t size)
{
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    if (!ctx)
        return -ENOMEM;
    ZSTD_inBuffer in = {from, len, 0};
    ZSTD_outBuffer out = {to, size, 0};
    size_t r = 0;
    while (out.pos < out.size) { /* what follows the frame in the last sector is not ours */
        size_t before = out.pos, taken = in.pos;
        r = ZSTD_decompressStream(ctx, &out, &in);
        if (ZSTD_isError(r) || (out.pos == before && in.pos == taken))
            break;
    }
    ZSTD_freeDCtx(ctx);
    return out.pos == out.size && !ZSTD_isError(r) ? 0 : -EIO;
}

int decompress_cluster(unsigned type, const void *from, size_t len, void *to, size_t size)
{
    return type == COMPRESSION_ZLIB ? inflate_cluster(from, len, to, size) : zstd_decompress(from, len, to, size);
}
