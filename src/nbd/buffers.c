/* Data of requests: buffers in sizes of powers of two, kept for the next request; how much is in use is bounded. */
#include <stdlib.h>

#include "nbd/server_impl.h"

#define KEEP_BYTES (16u << 20)

int buffers_class(size_t len)
{
    for (unsigned class = 0; class < BUFFER_CLASSES; class ++)
        if (len <= buffers_size(class))
            return (int)class;
    return -1;
}

void *buffers_take(struct buffers *buffers, unsigned class)
{
    size_t size = buffers_size(class);
    if (buffers->in_use + size > SERVER_BYTES_MAX)
        return NULL;
    void *buffer = buffers->free[class];
    if (buffer) {
        buffers->free[class] = *(void **)buffer;
        buffers->kept -= size;
    } else {
        buffer = aligned_alloc(4096, size);
    }
    if (buffer)
        buffers->in_use += size;
    return buffer;
}

void buffers_give(struct buffers *buffers, void *buffer, unsigned class)
{
    size_t size = buffers_size(class);
    buffers->in_use -= size;
    if (buffers->kept + size > KEEP_BYTES) {
        free(buffer);
        return;
    }
    *(void **)buffer = buffers->free[class];
    buffers->free[class] = buffer;
    buffers->kept += size;
}

void buffers_drain(struct buffers *buffers)
{
    for (unsigned class = 0; class < BUFFER_CLASSES; class ++) {
        for (void *buffer; (buffer = buffers->free[class]);) {
            buffers->free[class] = *(void **)buffer;
            free(buffer);
        }
    }
    buffers->kept = 0;
}
