/* Address spaces of devices: a sorted array of regions under a read-write lock.
 *
 * A region's callbacks run without the lock, so that a device may add and remove regions from within one (a BAR that
 * moves itself). Hence a callback may still run just after bus_remove() returned: what it points to lives as long as
 * the bus. */
#include "dev/bus.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct region {
    uint64_t base, len;
    const struct bus_ops *ops;
    void *arg;
};

struct bus {
    pthread_rwlock_t lock;
    struct region *regions; /* sorted by base, never overlapping */
    size_t count, capacity;
};

int bus_create(struct bus **ret_bus)
{
    struct bus *bus = calloc(1, sizeof *bus);
    if (!bus)
        return -ENOMEM;
    pthread_rwlock_init(&bus->lock, NULL);
    *ret_bus = bus;
    return 0;
}

void bus_free(struct bus *bus)
{
    if (!bus)
        return;
    pthread_rwlock_destroy(&bus->lock);
    free(bus->regions);
    free(bus);
}

/* Index of the first region whose base is above `address`. */
static size_t bus_upper(const struct bus *bus, uint64_t address)
{
    size_t low = 0, high = bus->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (bus->regions[middle].base <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int bus_grow(struct bus *bus)
{
    if (bus->count < bus->capacity)
        return 0;
    size_t capacity = bus->capacity ? bus->capacity * 2 : 16;
    struct region *regions = reallocarray(bus->regions, capacity, sizeof *regions);
    if (!regions)
        return -ENOMEM;
    bus->regions = regions;
    bus->capacity = capacity;
    return 0;
}

static int bus_insert(struct bus *bus, const struct region *region)
{
    size_t at = bus_upper(bus, region->base);
    if (at > 0 && region->base - bus->regions[at - 1].base < bus->regions[at - 1].len)
        return -EEXIST;
    if (at < bus->count && bus->regions[at].base - region->base < region->len)
        return -EEXIST;
    if (bus_grow(bus) < 0)
        return -ENOMEM;
    memmove(&bus->regions[at + 1], &bus->regions[at], (bus->count - at) * sizeof *bus->regions);
    bus->regions[at] = *region;
    bus->count++;
    return 0;
}

int bus_add(struct bus *bus, uint64_t base, uint64_t len, const struct bus_ops *ops, void *arg)
{
    if (!len || base + len - 1 < base)
        return -EINVAL;
    struct region region = {base, len, ops, arg};
    pthread_rwlock_wrlock(&bus->lock);
    int r = bus_insert(bus, &region);
    pthread_rwlock_unlock(&bus->lock);
    return r;
}

void bus_remove(struct bus *bus, uint64_t base)
{
    pthread_rwlock_wrlock(&bus->lock);
    size_t at = bus_upper(bus, base);
    if (at > 0 && bus->regions[at - 1].base == base) {
        memmove(&bus->regions[at - 1], &bus->regions[at], (bus->count - at) * sizeof *bus->regions);
        bus->count--;
    }
    pthread_rwlock_unlock(&bus->lock);
}

static bool bus_find(struct bus *bus, uint64_t address, unsigned size, struct region *ret_region)
{
    bool found = false;
    pthread_rwlock_rdlock(&bus->lock);
    size_t at = bus_upper(bus, address);
    if (at > 0) {
        const struct region *r = &bus->regions[at - 1];
        uint64_t offset = address - r->base;
        found = offset < r->len && size <= r->len - offset;
        if (found)
            *ret_region = *r;
    }
    pthread_rwlock_unlock(&bus->lock);
    return found;
}

uint64_t bus_read(struct bus *bus, uint64_t address, unsigned size)
{
    struct region region;
    uint64_t ones = size >= 8 ? UINT64_MAX : (UINT64_C(1) << (8 * size)) - 1;
    if (!bus_find(bus, address, size, &region))
        return ones;
    return region.ops->read(region.arg, address - region.base, size) & ones;
}

void bus_write(struct bus *bus, uint64_t address, uint64_t value, unsigned size)
{
    struct region region;
    if (bus_find(bus, address, size, &region))
        region.ops->write(region.arg, address - region.base, value, size);
}
