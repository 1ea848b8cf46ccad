/* Fuzz target: virtio-blk's queues, on a small file, through whichever I/O engine the host allows. */
#include <assert.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/block.h"
#include "virtio/blk.h"
#include "virtio_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct driver d;
    driver_open(&d, data, size);
    struct block_options options = {.path = "fuzz", .fd = memfd_create("fuzz-disk", MFD_CLOEXEC)};
    int r = ftruncate(options.fd, 1 << 20);
    assert(r == 0);
    struct virtio_blk_config config = {.id = "fuzz", .queues = 2};
    r = block_open(&options, &config.node, NULL);
    assert(r == 0);
    r = virtio_blk_create(&config, &d.host, &d.dev, NULL);
    assert(r == 0);
    driver_run(&d);
    driver_close(&d);
    return 0;
}
