/* PCI express root complex with ECAM and one flat bus 0: config space, BARs, MSI-X.
 *
 * A device fills in a struct pci_device (embedded in its own struct), sets its ids and BARs, then pci_add()s it.
 * Config space writes by the guest are masked and handled here: the device is told only of BAR accesses and of
 * changes it asked for. All of it is guest-controlled input. Source: PCI Local Bus 3.0, PCI Express Base 3.1. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include "dev/bus.h"
#include "dev/irq.h"

#define PCI_ECAM_BASE UINT64_C(0xe0000000)
#define PCI_ECAM_SIZE UINT64_C(0x100000)     /* bus 0; of buses that are told of, Linux looks at each slot */
#define PCI_MMIO32_BASE UINT64_C(0xc0000000) /* 32-bit BAR window, up to ECAM */
#define PCI_MMIO32_SIZE UINT64_C(0x20000000)
#define PCI_MMIO64_BASE UINT64_C(0x4000000000) /* 64-bit BAR window, 256 GiB..512 GiB */
#define PCI_MMIO64_SIZE UINT64_C(0x4000000000)
#define PCI_MAX_DEVICES 32
#define PCI_MSIX_MAX 64

struct pci_root;

struct pci_bar {
    uint64_t size;             /* power of two >= 4096; 0 when absent */
    const struct bus_ops *ops; /* offset counts within the BAR */
    void *arg;
    uint64_t home, mapped_at; /* private to pci.c: address assigned at start; bus address while decoded, else 0 */
};

struct pci_device {
    const char *name;
    uint16_t vendor_id, device_id, subsystem_vendor_id, subsystem_id;
    uint8_t revision;
    uint32_t class_code;   /* 0xccsspp */
    struct pci_bar bar[6]; /* 64-bit memory BARs: use 0, 2, 4 */
    unsigned msix_count;   /* vectors, 0..PCI_MSIX_MAX; the table lives in BAR `msix_bar` which pci.c owns */
    unsigned msix_bar;
    /* Optional: config accesses inside vendor capabilities that the device added with pci_add_capability. When set,
     * called for every guest read/write of the capability's bytes (after the bytes are stored, before they are read). */
    void (*config_read)(struct pci_device *dev, unsigned offset, unsigned size);
    void (*config_written)(struct pci_device *dev, unsigned offset, unsigned size);
    /* Optional: BAR `bar` is now decoded at `address`, or no longer (0). Called after every such change, also on
     * reset, possibly with pci.c's locks held: must not call back into pci.c. */
    void (*bar_mapped)(struct pci_device *dev, unsigned bar, uint64_t address);

    /* private to pci.c */
    struct pci_root *root;
    unsigned slot;
    unsigned capabilities_end;
    uint8_t config[4096], writable[4096];
    pthread_mutex_t lock;
    struct {
        uint32_t address_low, address_high, data, control;
        bool pending;
    } msix[PCI_MSIX_MAX];
    unsigned msix_capability;
};

must_check int pci_root_create(struct bus *memory_bus, struct bus *port_bus, struct irq_sink sink,
                               struct pci_root **ret_root, struct err *err);
void pci_root_free(struct pci_root *root);
/* Forgets what the guest set: BARs unmapped (addresses kept as assigned at start), MSI-X off, command cleared. */
void pci_root_reset(struct pci_root *root);

/* Appends a capability (id, then `len` bytes of body after the next pointer) before pci_add. Returns its offset in config
 * space, where the id byte sits; `writable_mask` (len bytes, NULL for none) says which body bits the guest may write. */
unsigned pci_add_capability(struct pci_device *dev, uint8_t id, const void *body, unsigned len,
                            const uint8_t *writable_mask);
/* Puts the device in the next slot, assigns its BARs an address (guests may move them) and maps none until the guest
 * sets memory decode. -ENOSPC when the bus is full. While it is added its `lock` may be used by pci.c only. */
must_check int pci_add(struct pci_root *root, struct pci_device *dev, struct err *err);
/* Takes the device off the bus before it is freed; no vCPU runs. pci_root_free does it for all that are left. */
void pci_remove(struct pci_device *dev);

/* Sends MSI-X vector `index`, or remembers it as pending while masked. Ignored when MSI-X is off. Thread-safe. */
void pci_msix_send(struct pci_device *dev, unsigned index);
bool pci_msix_enabled(struct pci_device *dev);
