/* PCI root: slots, config space access by ECAM and by ports 0xcf8/0xcfc, BAR decoding.
 *
 * Lock order: a device's lock, then the bus's. Config space accesses are split into bytes and masked by `writable`, so
 * nothing a guest writes reaches beyond what the device declared. The slot table grows only before vCPUs run. */
#include "dev/pci.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "dev/pci_impl.h"

#define CONFIG_PORT 0xcf8

struct pci_root {
    struct bus *memory, *ports;
    struct irq_sink sink;
    struct pci_device bridge;
    struct pci_device *slots[PCI_MAX_DEVICES];
    uint64_t next32, next64;
    uint32_t config_address; /* port 0xcf8; plain 32-bit loads and stores, as on hardware one CPU uses it at a time */
};

void pci_send_message(struct pci_root *root, struct msi msi)
{
    root->sink.send_msi(root->sink.arg, msi);
}

static uint64_t bar_address(const struct pci_device *dev, unsigned index)
{
    return load_le64(dev->config + PCI_BAR0 + 4 * index) & ~UINT64_C(0xf);
}

/* Makes the bus agree with the command register and BARs. A BAR that collides with something stays unmapped. */
static void update_mappings(struct pci_device *dev)
{
    bool decode = dev->config[PCI_COMMAND] & PCI_COMMAND_MEMORY;
    for (unsigned i = 0; i < 6; i += 2) {
        struct pci_bar *bar = &dev->bar[i];
        if (!bar->size)
            continue;
        uint64_t wanted = decode ? bar_address(dev, i) : 0;
        if (wanted == bar->mapped_at)
            continue;
        if (bar->mapped_at)
            bus_remove(dev->root->memory, bar->mapped_at);
        bar->mapped_at = 0;
        if (wanted && bus_add(dev->root->memory, wanted, bar->size, bar->ops, bar->arg) == 0)
            bar->mapped_at = wanted;
        if (dev->bar_mapped)
            dev->bar_mapped(dev, i, bar->mapped_at);
    }
}

static bool in_vendor_capability(const struct pci_device *dev, unsigned offset)
{
    return offset >= PCI_FIRST_CAPABILITY && offset < dev->capabilities_end;
}

static uint64_t config_read(struct pci_device *dev, unsigned offset, unsigned size)
{
    if (dev->config_read && in_vendor_capability(dev, offset))
        dev->config_read(dev, offset, size);
    uint64_t value = 0;
    pthread_mutex_lock(&dev->lock);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)dev->config[offset + i] << (8 * i);
    pthread_mutex_unlock(&dev->lock);
    return value;
}

static void config_write(struct pci_device *dev, unsigned offset, uint64_t value, unsigned size)
{
    pthread_mutex_lock(&dev->lock);
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = dev->writable[offset + i];
        uint8_t *byte = &dev->config[offset + i];
        *byte = (uint8_t)((*byte & ~mask) | ((value >> (8 * i)) & mask));
    }
    if (offset < PCI_BAR0 + 24)
        update_mappings(dev);
    pthread_mutex_unlock(&dev->lock);
    pci_msix_control_changed(dev);
    if (dev->config_written && in_vendor_capability(dev, offset))
        dev->config_written(dev, offset, size);
}

static struct pci_device *find_device(const struct pci_root *root, unsigned bus_device_function)
{
    if (bus_device_function & ~0xf8u) /* one bus, one function */
        return NULL;
    return root->slots[bus_device_function >> 3];
}

static uint64_t ecam_read(void *arg, uint64_t offset, unsigned size)
{
    struct pci_device *dev = find_device(arg, (unsigned)(offset >> 12));
    unsigned reg = offset & 0xfff;
    return dev && reg + size <= sizeof dev->config ? config_read(dev, reg, size) : UINT64_MAX;
}

static void ecam_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_device *dev = find_device(arg, (unsigned)(offset >> 12));
    unsigned reg = offset & 0xfff;
    if (dev && reg + size <= sizeof dev->config)
        config_write(dev, reg, value, size);
}

/* Ports 0xcf8..0xcff: address at offset 0, data window at offset 4. */
static struct pci_device *port_target(const struct pci_root *root, uint64_t offset, unsigned size, unsigned *ret_reg)
{
    uint32_t address = __atomic_load_n(&root->config_address, __ATOMIC_RELAXED);
    if (offset < 4 || !(address & 1u << 31) || offset + size > 8)
        return NULL;
    *ret_reg = (address & 0xfc) + (unsigned)(offset - 4);
    return find_device(root, address >> 8 & 0xffff);
}

static uint64_t config_port_read(void *arg, uint64_t offset, unsigned size)
{
    struct pci_root *root = arg;
    unsigned reg;
    if (offset == 0 && size == 4)
        return __atomic_load_n(&root->config_address, __ATOMIC_RELAXED);
    struct pci_device *dev = port_target(root, offset, size, &reg);
    return dev ? config_read(dev, reg, size) : UINT64_MAX;
}

static void config_port_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_root *root = arg;
    unsigned reg;
    if (offset == 0 && size == 4)
        __atomic_store_n(&root->config_address, (uint32_t)value, __ATOMIC_RELAXED);
    struct pci_device *dev = port_target(root, offset, size, &reg);
    if (dev)
        config_write(dev, reg, value, size);
}

static const struct bus_ops ecam_ops = {.name = "pci-ecam", .read = ecam_read, .write = ecam_write};
static const struct bus_ops port_ops = {.name = "pci-config", .read = config_port_read, .write = config_port_write};

static void set_field16(struct pci_device *dev, unsigned offset, uint16_t value)
{
    store_le16(dev->config + offset, value);
}

static void fill_header(struct pci_device *dev)
{
    set_field16(dev, 0x00, dev->vendor_id);
    set_field16(dev, 0x02, dev->device_id);
    set_field16(dev, 0x2c, dev->subsystem_vendor_id);
    set_field16(dev, 0x2e, dev->subsystem_id);
    store_le32(dev->config + 0x08, dev->class_code << 8 | dev->revision);
    store_le16(dev->writable + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_OFF);
    dev->writable[0x0c] = 0xff; /* cache line size and interrupt line: scratch bytes of the system software */
    dev->writable[0x3c] = 0xff;
}

unsigned pci_add_capability(struct pci_device *dev, uint8_t id, const void *body, unsigned len,
                            const uint8_t *writable_mask)
{
    unsigned at = dev->capabilities_end ? dev->capabilities_end : PCI_FIRST_CAPABILITY;
    unsigned end = (at + 2 + len + 3) & ~3u;
    if (end > PCI_CAPABILITIES_LIMIT) /* a device's own table of capabilities is too long: a bug of ours */
        abort();
    dev->config[at] = id;
    dev->config[at + 1] = dev->config[PCI_CAPABILITY_POINTER]; /* newest first */
    memcpy(dev->config + at + 2, body, len);
    if (writable_mask)
        memcpy(dev->writable + at + 2, writable_mask, len);
    dev->config[PCI_CAPABILITY_POINTER] = (uint8_t)at;
    dev->config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
    dev->capabilities_end = end;
    return at;
}

static void set_bar(struct pci_device *dev, unsigned index, uint64_t address)
{
    store_le64(dev->config + PCI_BAR0 + 4 * index, address | PCI_BAR_64BIT | PCI_BAR_PREFETCHABLE);
}

static int assign_bar(struct pci_root *root, struct pci_device *dev, unsigned index)
{
    struct pci_bar *bar = &dev->bar[index];
    bool low = bar->size <= UINT64_C(16) << 20;
    uint64_t *next = low ? &root->next32 : &root->next64;
    uint64_t end = low ? PCI_MMIO32_BASE + PCI_MMIO32_SIZE : PCI_MMIO64_BASE + PCI_MMIO64_SIZE;
    uint64_t at = (*next + bar->size - 1) & ~(bar->size - 1);
    if (at >= end || bar->size > end - at)
        return -ENOSPC;
    *next = at + bar->size;
    bar->home = at;
    set_bar(dev, index, at);
    store_le64(dev->writable + PCI_BAR0 + 4 * index, ~(bar->size - 1));
    return 0;
}

static unsigned free_slot(const struct pci_root *root)
{
    unsigned slot = 0;
    while (slot < PCI_MAX_DEVICES && root->slots[slot])
        slot++;
    return slot;
}

int pci_add(struct pci_root *root, struct pci_device *dev, struct err *err)
{
    unsigned slot = free_slot(root);
    if (slot == PCI_MAX_DEVICES)
        return err_say(err, ENOSPC, "%s: no free PCI slot, at most %d devices", dev->name, PCI_MAX_DEVICES - 1);
    dev->root = root;
    dev->slot = slot;
    pthread_mutex_init(&dev->lock, NULL);
    fill_header(dev);
    if (dev->msix_count)
        pci_msix_init(dev);
    for (unsigned i = 0; i < 6; i += 2)
        if (dev->bar[i].size && assign_bar(root, dev, i) < 0)
            return err_say(err, ENOSPC, "%s: no PCI address space for BAR %u", dev->name, i);
    root->slots[slot] = dev;
    return 0;
}

void pci_remove(struct pci_device *dev)
{
    if (!dev->root)
        return;
    dev->config[PCI_COMMAND] = 0;
    update_mappings(dev);
    dev->root->slots[dev->slot] = NULL;
    dev->root = NULL;
    pthread_mutex_destroy(&dev->lock);
}

static void reset_device(struct pci_device *dev)
{
    pthread_mutex_lock(&dev->lock);
    for (unsigned i = 0; i < sizeof dev->config; i++)
        dev->config[i] &= (uint8_t)~dev->writable[i];
    for (unsigned i = 0; i < 6; i += 2)
        if (dev->bar[i].size)
            set_bar(dev, i, dev->bar[i].home);
    update_mappings(dev);
    pci_msix_reset(dev);
    pthread_mutex_unlock(&dev->lock);
}

void pci_root_reset(struct pci_root *root)
{
    __atomic_store_n(&root->config_address, 0, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < PCI_MAX_DEVICES; i++)
        if (root->slots[i])
            reset_device(root->slots[i]);
}

int pci_root_create(struct bus *memory_bus, struct bus *port_bus, struct irq_sink sink, struct pci_root **ret_root,
                    struct err *err)
{
    struct pci_root *root = calloc(1, sizeof *root);
    if (!root)
        return err_set(err, ENOMEM, "PCI root");
    *root = (struct pci_root){
        .memory = memory_bus, .ports = port_bus, .sink = sink, .next32 = PCI_MMIO32_BASE, .next64 = PCI_MMIO64_BASE};
    root->bridge = (struct pci_device){
        .name = "host bridge", .vendor_id = 0x1b36, .device_id = 0x0008, .class_code = 0x060000};
    int r = pci_add(root, &root->bridge, err);
    if (r == 0 && (r = bus_add(memory_bus, PCI_ECAM_BASE, PCI_ECAM_SIZE, &ecam_ops, root)) < 0)
        err_set(err, -r, "PCI configuration space");
    if (r == 0 && (r = bus_add(port_bus, CONFIG_PORT, 8, &port_ops, root)) < 0)
        err_set(err, -r, "PCI configuration ports");
    if (r < 0) {
        pci_root_free(root);
        return r;
    }
    *ret_root = root;
    return 0;
}

void pci_root_free(struct pci_root *root)
{
    if (!root)
        return;
    bus_remove(root->memory, PCI_ECAM_BASE);
    bus_remove(root->ports, CONFIG_PORT);
    for (unsigned i = 0; i < PCI_MAX_DEVICES; i++)
        if (root->slots[i])
            pci_remove(root->slots[i]);
    free(root);
}
