/* The machine's two address spaces as devices see them: ports and memory-mapped registers.
 *
 * Regions never overlap. Accesses come from vCPU threads, several at once: a device takes its own lock.
 * `size` is 1, 2, 4 or 8; `offset` counts from the region's start and offset+size never passes its end. */
#pragma once

#include <stdint.h>
#include "base/err.h"

struct bus;

struct bus_ops {
    const char *name;
    uint64_t (*read)(void *arg, uint64_t offset, unsigned size);
    void (*write)(void *arg, uint64_t offset, uint64_t value, unsigned size);
};

must_check int bus_create(struct bus **ret_bus);
void bus_free(struct bus *bus);

/* -EEXIST on overlap, -ENOMEM. Regions may come and go while vCPUs run (PCI BARs move). */
must_check int bus_add(struct bus *bus, uint64_t base, uint64_t len, const struct bus_ops *ops, void *arg);
void bus_remove(struct bus *bus, uint64_t base);

/* Unclaimed addresses read as all ones; writes to them go nowhere. */
uint64_t bus_read(struct bus *bus, uint64_t address, unsigned size);
void bus_write(struct bus *bus, uint64_t address, uint64_t value, unsigned size);
