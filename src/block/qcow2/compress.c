/* Compressed clusters: raw deflate streams with a window of 4 KiB, as other writers make them, or zstd frames. */
#include <errno.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "block/qcow2/qcow2_impl.h"

#define WINDOW_BITS (-12)

static int deflate_cluster(const void *from, size_t len, void *to, size_t room)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)from, .avail_in = (uInt)len, .next_out = to, .avail_out = (uInt)room};
    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WINDOW_BITS, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        return -ENOMEM;
    int r = deflate(&z, Z_FINISH) == Z_STREAM_END ? (int)(room - z.avail_out) : -ENOSPC;
    deflateEnd(&z);
    return r;
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

int compress_cluster(unsigned type, const void *from, size_t len, void *to, size_t room)
{
    if (type == COMPRESSION_ZLIB)
        return deflate_cluster(from, len, to, room);
    size_t r = ZSTD_compress(to, room, from, len, ZSTD_CLEVEL_DEFAULT);
    return ZSTD_isError(r) ? -ENOSPC : (int)r;
}

int decompress_cluster(unsigned type, const void *from, size_t len, void *to, size_t size)
{
    return type == COMPRESSION_ZLIB ? inflate_cluster(from, len, to, size) : zstd_decompress(from, len, to, size);
}
