/* A hostile driver for fuzzing: a little language of what a guest can do to a device, read from the fuzzer's input.
 * Everything happens in one thread (but for classes that bring their own), so a crash input replays. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "mem/mem.h"
#include "virtio/device.h"

#define DRIVER_MEMORY (UINT64_C(1) << 20)

struct driver {
    struct mem *mem;
    struct loop *loop;
    struct virtio_host host;
    struct virtio_device *dev;
    int wire; /* the host's end of the device's backend; -1: none */
    const uint8_t *data;
    size_t left;
};

/* Memory and loop; the caller creates the device on driver->host, then runs, then frees. */
void driver_open(struct driver *d, const uint8_t *data, size_t size);
/* The first byte of input chooses the features, the rest are commands. */
void driver_run(struct driver *d);
void driver_close(struct driver *d);
/* The next input byte, 0 at the end. */
uint8_t driver_byte(struct driver *d);
