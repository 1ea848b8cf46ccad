/* Fuzz target: PCI config space by ECAM and ports, BARs that move, MSI-X tables, interrupts, resets. */
#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "bus_script.h"
#include "dev/pci.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned sent;

static void send(void *arg, struct msi msi)
{
    (void)arg, (void)msi;
    sent++;
}

static uint64_t bar_read(void *arg, uint64_t offset, unsigned size)
{
    assert(offset + size <= *(uint64_t *)arg);
    return offset;
}

static void bar_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    (void)value;
    assert(offset + size <= *(uint64_t *)arg);
}

static const struct bus_ops bar_ops = {.name = "bar", .read = bar_read, .write = bar_write};
static uint64_t bar_sizes[2] = {0x4000, 0x2000000};

static void capability_access(struct pci_device *dev, unsigned offset, unsigned size)
{
    assert(offset + size <= sizeof dev->config);
}

static void make_device(struct pci_root *root, struct pci_device *dev, unsigned index)
{
    const uint8_t body[14] = {1, 2, 3}, mask[14] = {0, 0xff, 0xff, 0xff, 0xff};
    memset(dev, 0, sizeof *dev);
    dev->name = "fuzzed";
    dev->vendor_id = 0x1af4;
    dev->class_code = 0x020000;
    dev->msix_count = index ? PCI_MSIX_MAX : 3;
    dev->msix_bar = 4;
    dev->bar[0] = (struct pci_bar){.size = bar_sizes[index], .ops = &bar_ops, .arg = &bar_sizes[index]};
    dev->config_read = dev->config_written = capability_access;
    pci_add_capability(dev, 9, body, sizeof body, mask);
    if (pci_add(root, dev, NULL) < 0)
        assert(false);
}

struct machine {
    struct bus *memory, *ports;
    struct pci_root *root;
    struct pci_device *devices;
};

static uint64_t address_of(const struct machine *m, const struct bus_step *step)
{
    const struct pci_device *dev = &m->devices[step->choice & 1];
    unsigned bar = step->choice & 2 ? 4 : 0;
    if (step->action & 2)
        return PCI_ECAM_BASE + (step->choice & 7) * UINT64_C(0x8000) + (step->address & 0x1fff);
    return dev->bar[bar].mapped_at + step->address;
}

static void run_step(struct machine *m, const struct bus_step *step)
{
    uint64_t value = step->value | (uint64_t)step->value << 32;
    switch (step->action) {
    case 0: case 2: case 4: case 6:
        bus_write(m->memory, address_of(m, step), value, step->size);
        break;
    case 1: case 3: case 5: case 7:
        bus_read(m->memory, address_of(m, step), step->size);
        break;
    case 8:
        bus_write(m->ports, 0xcf8 + (step->address & 7), value, step->size > 4 ? 4 : step->size);
        break;
    case 9:
        bus_read(m->ports, 0xcf8 + (step->address & 7), step->size > 4 ? 4 : step->size);
        break;
    case 10:
        pci_msix_send(&m->devices[step->choice & 1], step->address);
        break;
    case 11:
        pci_msix_enabled(&m->devices[step->choice & 1]);
        break;
    case 12:
        if (step->choice == 0xff)
            pci_root_reset(m->root);
        break;
    default:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct pci_device devices[2];
    struct machine m = {.devices = devices};
    if (bus_create(&m.memory) < 0 || bus_create(&m.ports) < 0 ||
        pci_root_create(m.memory, m.ports, (struct irq_sink){.send_msi = send}, &m.root, NULL) < 0)
        return 0;
    make_device(m.root, &devices[0], 0);
    make_device(m.root, &devices[1], 1);
    struct bus_step step;
    while (bus_step_next(&data, &size, &step))
        run_step(&m, &step);
    pci_root_free(m.root);
    bus_free(m.memory);
    bus_free(m.ports);
    return 0;
}
