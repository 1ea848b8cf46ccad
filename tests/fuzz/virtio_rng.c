/* Fuzz target: virtio-rng's queue. */
#include <assert.h>

#include "virtio/rng.h"
#include "virtio_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct driver d;
    driver_open(&d, data, size);
    struct virtio_rng_config config = {0};
    int r = virtio_rng_create(&config, &d.host, &d.dev, NULL);
    assert(r == 0);
    driver_run(&d);
    driver_close(&d);
    return 0;
}
