/* Fuzz target: virtio-balloon's queues, with every feature that the first byte asks for. */
#include <assert.h>

#include "virtio/balloon.h"
#include "virtio_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct driver d;
    driver_open(&d, data, size);
    uint8_t choice = driver_byte(&d);
    struct virtio_balloon_config config = {.stats_interval_s = choice & 1,
                                           .free_page_reporting = choice & 2,
                                           .free_page_hinting = choice & 4,
                                           .deflate_on_oom = choice & 8};
    int r = virtio_balloon_create(&config, &d.host, &d.dev, NULL);
    assert(r == 0);
    if (config.free_page_hinting && (choice & 16)) {
        r = virtio_balloon_hinting_start(d.dev, choice & 32, NULL);
        assert(r == 0);
    }
    driver_run(&d);
    driver_close(&d);
    return 0;
}
