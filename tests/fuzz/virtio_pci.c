/* Fuzz target: the PCI transport: config space, BARs and the PCI_CFG window of two devices on one bus. */
#include <assert.h>

#include "dev/pci.h"
#include "virtio/balloon.h"
#include "virtio/rng.h"
#include "virtio_driver.h"

#define COMMANDS_MAX 400

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void send_msi(void *arg, struct msi msi)
{
    (void)arg;
    (void)msi;
}

static uint64_t take(struct driver *d, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)driver_byte(d) << (8 * i);
    return value;
}

static void access_bus(struct driver *d, struct bus *bus, uint64_t address)
{
    unsigned choice = driver_byte(d), size = 1u << (choice & 3);
    if (choice & 4)
        bus_read(bus, address, size);
    else
        bus_write(bus, address, take(d, size), size);
}

static void command(struct driver *d, struct bus *memory)
{
    unsigned what = driver_byte(d);
    if (what & 1)
        access_bus(d, memory, PCI_ECAM_BASE + take(d, 2));
    else
        access_bus(d, memory, PCI_MMIO32_BASE + ((what & 2) ? take(d, 1) : take(d, 2)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct driver d;
    struct bus *memory, *ports;
    struct pci_root *root;
    struct virtio_device *other;
    driver_open(&d, data, size);
    int r = bus_create(&memory) | bus_create(&ports);
    assert(r == 0);
    r = pci_root_create(memory, ports, (struct irq_sink){.send_msi = send_msi}, &root, NULL);
    assert(r == 0);
    d.host.pci = root;
    struct virtio_rng_config rng = {0};
    struct virtio_balloon_config balloon = {.stats_interval_s = 1, .free_page_reporting = true};
    r = virtio_rng_create(&rng, &d.host, &d.dev, NULL);
    assert(r == 0);
    r = virtio_balloon_create(&balloon, &d.host, &other, NULL);
    assert(r == 0);
    bus_write(memory, PCI_ECAM_BASE + (1 << 15) + 4, 6, 2);
    bus_write(memory, PCI_ECAM_BASE + (2 << 15) + 4, 6, 2);
    for (unsigned i = 0; d.left && i < COMMANDS_MAX; i++)
        command(&d, memory);
    pci_root_reset(root);
    pci_root_free(root);
    virtio_free(other);
    driver_close(&d);
    bus_free(memory);
    bus_free(ports);
    return 0;
}
