/* The PCI transport (VIRTIO 1.2 §4.1), modern only: common, notify, ISR and device configuration in BAR 0, MSI-X in
 * BAR 2, one vector a queue and one for configuration changes. */
#pragma once

#include "virtio/device.h"

/* Puts an initialised device on host.pci. On error the device is as before. */
must_check int virtio_pci_attach(struct virtio_device *dev, struct err *err);
