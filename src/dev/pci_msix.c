/* MSI-X: the vector table, its pending bits, masking, and sending.
 *
 * The table and pending bit array live in a BAR of their own of MSIX_BAR_SIZE. The device's lock guards both; messages
 * leave after it is released. Source: PCI Local Bus 3.0 §6.8.2. */
#include "dev/pci_impl.h"

#include <string.h>

#include "base/bytes.h"

#define MSIX_BAR_SIZE 0x1000
#define MSIX_PENDING 0x800
#define CAPABILITY_MSIX 0x11
#define CONTROL_ENABLE 0x8000
#define CONTROL_MASK_ALL 0x4000
#define VECTOR_MASKED 1u

static uint16_t msix_control(const struct pci_device *dev)
{
    return load_le16(dev->config + dev->msix_capability + 2);
}

static uint32_t *table_word(struct pci_device *dev, unsigned word)
{
    uint32_t *const words[4] = {&dev->msix[word / 4].address_low, &dev->msix[word / 4].address_high,
                                &dev->msix[word / 4].data, &dev->msix[word / 4].control};
    return words[word % 4];
}

static uint32_t pending_word(const struct pci_device *dev, unsigned word)
{
    uint32_t bits = 0;
    for (unsigned i = 0; i < 32 && word * 32 + i < dev->msix_count; i++)
        bits |= (uint32_t)dev->msix[word * 32 + i].pending << i;
    return bits;
}

static uint32_t read_word(struct pci_device *dev, unsigned offset)
{
    if (offset < dev->msix_count * 16)
        return *table_word(dev, offset / 4);
    if (offset >= MSIX_PENDING && offset < MSIX_PENDING + PCI_MSIX_MAX / 8)
        return pending_word(dev, (offset - MSIX_PENDING) / 4);
    return 0;
}

/* Takes the message of a vector that may go out now; false while it is masked or MSI-X is off. Lock held. */
static bool take_message(struct pci_device *dev, unsigned index, struct msi *ret_msi)
{
    if ((msix_control(dev) & (CONTROL_ENABLE | CONTROL_MASK_ALL)) != CONTROL_ENABLE ||
        (dev->msix[index].control & VECTOR_MASKED))
        return false;
    dev->msix[index].pending = false;
    *ret_msi = (struct msi){
        .address = (uint64_t)dev->msix[index].address_high << 32 | dev->msix[index].address_low,
        .data = dev->msix[index].data,
    };
    return true;
}

static void send_pending(struct pci_device *dev, unsigned index)
{
    struct msi msi = {0};
    pthread_mutex_lock(&dev->lock);
    bool send = dev->msix[index].pending && take_message(dev, index, &msi);
    pthread_mutex_unlock(&dev->lock);
    if (send)
        pci_send_message(dev->root, msi);
}

/* Registers are words; quad accesses are two of them, smaller ones are undefined and read as zero. */
static uint64_t msix_read(void *arg, uint64_t offset, unsigned size)
{
    struct pci_device *dev = arg;
    if (size < 4 || offset % 4)
        return 0;
    pthread_mutex_lock(&dev->lock);
    uint64_t value = read_word(dev, (unsigned)offset);
    if (size == 8)
        value |= (uint64_t)read_word(dev, (unsigned)offset + 4) << 32;
    pthread_mutex_unlock(&dev->lock);
    return value;
}

static void write_word(struct pci_device *dev, unsigned offset, uint32_t value)
{
    if (offset >= dev->msix_count * 16)
        return;
    pthread_mutex_lock(&dev->lock);
    *table_word(dev, offset / 4) = offset % 16 == 12 ? value & VECTOR_MASKED : value;
    pthread_mutex_unlock(&dev->lock);
    send_pending(dev, offset / 16);
}

static void msix_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    if (size < 4 || offset % 4)
        return;
    write_word(arg, (unsigned)offset, (uint32_t)value);
    if (size == 8)
        write_word(arg, (unsigned)offset + 4, (uint32_t)(value >> 32));
}

static const struct bus_ops msix_ops = {.name = "msix", .read = msix_read, .write = msix_write};

void pci_msix_init(struct pci_device *dev)
{
    uint8_t body[10] = {0}, writable[10] = {0};
    store_le16(body, (uint16_t)(dev->msix_count - 1));
    store_le32(body + 2, dev->msix_bar);
    store_le32(body + 6, MSIX_PENDING | dev->msix_bar);
    store_le16(writable, CONTROL_ENABLE | CONTROL_MASK_ALL);
    dev->msix_capability = pci_add_capability(dev, CAPABILITY_MSIX, body, sizeof body, writable);
    dev->bar[dev->msix_bar] = (struct pci_bar){.size = MSIX_BAR_SIZE, .ops = &msix_ops, .arg = dev};
    pci_msix_reset(dev);
}

void pci_msix_reset(struct pci_device *dev)
{
    memset(dev->msix, 0, sizeof dev->msix);
    for (unsigned i = 0; i < dev->msix_count; i++)
        dev->msix[i].control = VECTOR_MASKED;
}

void pci_msix_control_changed(struct pci_device *dev)
{
    for (unsigned i = 0; i < dev->msix_count; i++)
        if (dev->msix[i].pending)
            send_pending(dev, i);
}

void pci_msix_send(struct pci_device *dev, unsigned index)
{
    struct msi msi = {0};
    if (index >= dev->msix_count)
        return;
    pthread_mutex_lock(&dev->lock);
    bool send = take_message(dev, index, &msi);
    if (!send && (msix_control(dev) & CONTROL_ENABLE))
        dev->msix[index].pending = true;
    pthread_mutex_unlock(&dev->lock);
    if (send)
        pci_send_message(dev->root, msi);
}

bool pci_msix_enabled(struct pci_device *dev)
{
    if (!dev->msix_count)
        return false;
    pthread_mutex_lock(&dev->lock);
    bool enabled = msix_control(dev) & CONTROL_ENABLE;
    pthread_mutex_unlock(&dev->lock);
    return enabled;
}
