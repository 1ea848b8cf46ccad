/* Private to pci.c and pci_msix.c. */
#pragma once

#include "dev/pci.h"

#define PCI_COMMAND 0x04
#define PCI_COMMAND_MEMORY 0x0002
#define PCI_COMMAND_MASTER 0x0004
#define PCI_COMMAND_INTX_OFF 0x0400
#define PCI_STATUS 0x06
#define PCI_STATUS_CAPABILITIES 0x10
#define PCI_BAR0 0x10
#define PCI_BAR_64BIT 0x4
#define PCI_BAR_PREFETCHABLE 0x8
#define PCI_CAPABILITY_POINTER 0x34
#define PCI_FIRST_CAPABILITY 0x40
#define PCI_CAPABILITIES_LIMIT 0x100

/* Adds the MSI-X capability and the BAR that holds its table. */
void pci_msix_init(struct pci_device *dev);
/* Power-on state; the device's lock is held. */
void pci_msix_reset(struct pci_device *dev);
/* The guest may have changed the enable or function mask bit: sends what became unmasked. */
void pci_msix_control_changed(struct pci_device *dev);
void pci_send_message(struct pci_root *root, struct msi msi);
