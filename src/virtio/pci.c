/* Threads: register accesses come from vCPU threads and take the device's lock; a notify write only signals an eventfd.
 * bar_mapped runs under pci.c's locks, so it touches nothing that our lock protects: eventfds never change. */
#include "virtio/pci.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "cpu/engine.h"
#include "dev/pci.h"

#define VENDOR_ID 0x1af4
#define DEVICE_ID_BASE 0x1040
#define CAP_VENDOR 0x09

#define CAP_COMMON 1
#define CAP_NOTIFY 2
#define CAP_ISR 3
#define CAP_DEVICE 4
#define CAP_PCI_CFG 5

/* BAR 0 */
#define COMMON_AT 0x0000u
#define COMMON_LEN 0x38u
#define ISR_AT 0x1000u
#define ISR_LEN 1u
#define DEVICE_AT 0x2000u
#define NOTIFY_AT 0x3000u
#define NOTIFY_MULTIPLIER 4u
#define BAR_LEN 0x4000u
#define MSIX_BAR 2u

#define NO_VECTOR 0xffff
#define ISR_QUEUE 1u
#define ISR_CONFIG 2u

struct virtio_pci {
    struct pci_device pci; /* first: pci.c's callbacks get this */
    struct virtio_device *dev;
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select, config_vector;
    uint16_t queue_vector[VIRTIO_MAX_QUEUES];
    uint8_t isr;
    unsigned window; /* config space offset of the PCI_CFG capability */
    uint64_t notify_at; /* where ioeventfds are registered; 0: nowhere */
};

static void queue_interrupt(struct virtio_device *dev, unsigned index)
{
    struct virtio_pci *vp = dev->transport;
    vp->isr |= ISR_QUEUE;
    if (vp->queue_vector[index] < vp->pci.msix_count)
        pci_msix_send(&vp->pci, vp->queue_vector[index]);
}

static void config_interrupt(struct virtio_device *dev)
{
    struct virtio_pci *vp = dev->transport;
    vp->isr |= ISR_CONFIG;
    if (vp->config_vector < vp->pci.msix_count)
        pci_msix_send(&vp->pci, vp->config_vector);
}

static void transport_reset(struct virtio_device *dev)
{
    struct virtio_pci *vp = dev->transport;
    vp->device_feature_select = vp->driver_feature_select = 0;
    vp->queue_select = 0;
    vp->isr = 0;
    vp->config_vector = NO_VECTOR;
    for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++)
        vp->queue_vector[i] = NO_VECTOR;
}

static void transport_free(struct virtio_device *dev)
{
    struct virtio_pci *vp = dev->transport;
    pci_remove(&vp->pci);
    free(vp);
    dev->transport = NULL;
}

/* ---- common configuration: one row a register ---- */

enum common_reg {
    DEVICE_FEATURE_SELECT,
    DEVICE_FEATURE,
    DRIVER_FEATURE_SELECT,
    DRIVER_FEATURE,
    CONFIG_VECTOR,
    NUM_QUEUES,
    DEVICE_STATUS,
    CONFIG_GENERATION,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUE_VECTOR,
    QUEUE_ENABLE,
    QUEUE_NOTIFY_OFF,
    QUEUE_DESC,
    QUEUE_AVAIL,
    QUEUE_USED,
    COMMON_REG_COUNT,
};

static const struct {
    uint8_t offset, size;
} common_regs[COMMON_REG_COUNT] = {
    [DEVICE_FEATURE_SELECT] = {0, 4}, [DEVICE_FEATURE] = {4, 4}, [DRIVER_FEATURE_SELECT] = {8, 4},
    [DRIVER_FEATURE] = {12, 4},       [CONFIG_VECTOR] = {16, 2}, [NUM_QUEUES] = {18, 2},
    [DEVICE_STATUS] = {20, 1},        [CONFIG_GENERATION] = {21, 1}, [QUEUE_SELECT] = {22, 2},
    [QUEUE_SIZE] = {24, 2},           [QUEUE_VECTOR] = {26, 2},  [QUEUE_ENABLE] = {28, 2},
    [QUEUE_NOTIFY_OFF] = {30, 2},     [QUEUE_DESC] = {32, 8},    [QUEUE_AVAIL] = {40, 8},
    [QUEUE_USED] = {48, 8},
};

static uint32_t feature_half(uint64_t features, uint32_t select)
{
    return select > 1 ? 0 : (uint32_t)(features >> (32 * select));
}

static struct virtq *selected_queue(struct virtio_pci *vp)
{
    return vp->queue_select < vp->dev->queue_count ? &vp->dev->queues[vp->queue_select] : NULL;
}

static uint64_t queue_reg_read(struct virtio_pci *vp, enum common_reg reg)
{
    const struct virtq *q = selected_queue(vp);
    if (!q)
        return reg == QUEUE_VECTOR ? NO_VECTOR : 0; /* size 0: no such queue */
    if (reg == QUEUE_SIZE)
        return q->size;
    if (reg == QUEUE_VECTOR)
        return vp->queue_vector[vp->queue_select];
    if (reg == QUEUE_ENABLE)
        return q->enabled;
    if (reg == QUEUE_NOTIFY_OFF)
        return vp->queue_select;
    return reg == QUEUE_DESC ? q->desc_gpa : reg == QUEUE_AVAIL ? q->avail_gpa : q->used_gpa;
}

static uint64_t common_read(struct virtio_pci *vp, enum common_reg reg)
{
    const struct virtio_device *dev = vp->dev;
    if (reg >= QUEUE_SIZE)
        return queue_reg_read(vp, reg);
    const uint64_t values[] = {
        [DEVICE_FEATURE_SELECT] = vp->device_feature_select,
        [DEVICE_FEATURE] = feature_half(dev->offered, vp->device_feature_select),
        [DRIVER_FEATURE_SELECT] = vp->driver_feature_select,
        [DRIVER_FEATURE] = feature_half(dev->accepted, vp->driver_feature_select),
        [CONFIG_VECTOR] = vp->config_vector,
        [NUM_QUEUES] = dev->queue_count,
        [DEVICE_STATUS] = dev->status,
        [CONFIG_GENERATION] = dev->config_generation,
        [QUEUE_SELECT] = vp->queue_select,
    };
    return values[reg];
}

static uint16_t vector_or_none(const struct virtio_pci *vp, uint64_t vector)
{
    return vector < vp->pci.msix_count ? (uint16_t)vector : NO_VECTOR;
}

static void queue_enable(struct virtio_pci *vp, struct virtq *q)
{
    struct virtio_device *dev = vp->dev;
    if (virtq_enable(q, virtio_has(dev, VIRTIO_F_RING_EVENT_IDX), virtio_has(dev, VIRTIO_F_RING_INDIRECT_DESC)) < 0)
        virtio_fail(dev, "queue %u: %s", vp->queue_select, q->error);
}

static void queue_reg_write(struct virtio_pci *vp, enum common_reg reg, uint64_t value)
{
    struct virtq *q = selected_queue(vp);
    if (!q)
        return;
    if (reg == QUEUE_VECTOR)
        vp->queue_vector[vp->queue_select] = vector_or_none(vp, value);
    if (q->enabled || (vp->dev->status & VIRTIO_STATUS_DRIVER_OK)) /* the rest is final */
        return;
    if (reg == QUEUE_SIZE)
        q->size = (uint16_t)value;
    else if (reg == QUEUE_DESC)
        q->desc_gpa = value;
    else if (reg == QUEUE_AVAIL)
        q->avail_gpa = value;
    else if (reg == QUEUE_USED)
        q->used_gpa = value;
    else if (reg == QUEUE_ENABLE && value == 1)
        queue_enable(vp, q);
}

static void driver_feature_write(struct virtio_pci *vp, uint32_t value)
{
    struct virtio_device *dev = vp->dev;
    if (vp->driver_feature_select > 1 || (dev->status & VIRTIO_STATUS_FEATURES_OK))
        return;
    unsigned shift = 32 * vp->driver_feature_select;
    dev->accepted = (dev->accepted & ~(UINT64_C(0xffffffff) << shift)) | (uint64_t)value << shift;
}

static void common_write(struct virtio_pci *vp, enum common_reg reg, uint64_t value)
{
    if (vp->dev->resetting)
        return;
    if (reg >= QUEUE_SIZE)
        queue_reg_write(vp, reg, value);
    else if (reg == DEVICE_FEATURE_SELECT)
        vp->device_feature_select = (uint32_t)value;
    else if (reg == DRIVER_FEATURE_SELECT)
        vp->driver_feature_select = (uint32_t)value;
    else if (reg == DRIVER_FEATURE)
        driver_feature_write(vp, (uint32_t)value);
    else if (reg == CONFIG_VECTOR)
        vp->config_vector = vector_or_none(vp, value);
    else if (reg == DEVICE_STATUS)
        virtio_set_status(vp->dev, (uint8_t)value);
    else if (reg == QUEUE_SELECT)
        vp->queue_select = (uint16_t)value;
}

static uint64_t low_bytes(uint64_t value, unsigned size)
{
    return size >= 8 ? value : value & ((UINT64_C(1) << (8 * size)) - 1);
}

/* A register is accessed whole; the 64-bit ones also by halves (§4.1.3.1). Anything else reads 0 and writes nothing. */
static uint64_t common_access(struct virtio_pci *vp, unsigned offset, unsigned size, const uint64_t *write)
{
    for (unsigned r = 0; r < COMMON_REG_COUNT; r++) {
        unsigned at = common_regs[r].offset, len = common_regs[r].size;
        if (offset < at || offset >= at + len)
            continue;
        bool half = len == 8 && size == 4 && offset % 4 == 0;
        if (!half && (offset != at || size != len))
            return 0;
        unsigned shift = 8 * (offset - at);
        uint64_t mask = half ? UINT64_C(0xffffffff) << shift : low_bytes(UINT64_MAX, len);
        if (!write)
            return (common_read(vp, (enum common_reg)r) & mask) >> shift;
        uint64_t old = half ? common_read(vp, (enum common_reg)r) & ~mask : 0;
        common_write(vp, (enum common_reg)r, old | (low_bytes(*write, size) << shift));
        return 0;
    }
    return 0;
}

/* ---- BAR 0 ---- */

static uint64_t isr_read(struct virtio_pci *vp)
{
    uint8_t isr = vp->isr;
    vp->isr = 0;
    return isr;
}

static uint64_t device_config_read(struct virtio_pci *vp, unsigned offset, unsigned size)
{
    uint8_t raw[8] = {0};
    virtio_config_read(vp->dev, offset, raw, size);
    return load_le64(raw);
}

static uint64_t bar_read(void *arg, uint64_t offset, unsigned size)
{
    struct virtio_pci *vp = arg;
    uint64_t value = 0;
    pthread_mutex_lock(&vp->dev->lock);
    if (offset < COMMON_AT + COMMON_LEN)
        value = common_access(vp, (unsigned)offset, size, NULL);
    else if (offset == ISR_AT)
        value = isr_read(vp);
    else if (offset >= DEVICE_AT && offset < NOTIFY_AT)
        value = device_config_read(vp, (unsigned)(offset - DEVICE_AT), size);
    pthread_mutex_unlock(&vp->dev->lock);
    return value;
}

static void bar_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    struct virtio_pci *vp = arg;
    if (offset >= NOTIFY_AT) {
        uint64_t index = (offset - NOTIFY_AT) / NOTIFY_MULTIPLIER;
        if (index < vp->dev->queue_count)
            virtio_kick(vp->dev, (unsigned)index);
        return;
    }
    pthread_mutex_lock(&vp->dev->lock);
    if (offset < COMMON_AT + COMMON_LEN) {
        common_access(vp, (unsigned)offset, size, &value);
    } else if (offset >= DEVICE_AT && !vp->dev->resetting) {
        uint8_t raw[8];
        store_le64(raw, value);
        virtio_config_write(vp->dev, (unsigned)(offset - DEVICE_AT), raw, size);
    }
    pthread_mutex_unlock(&vp->dev->lock);
}

static const struct bus_ops bar_ops = {.name = "virtio", .read = bar_read, .write = bar_write};

/* ---- ioeventfd: the kernel signals kick_fd without an exit to us, where the engine can do it ---- */

static void ioeventfds(struct virtio_pci *vp, uint64_t base, bool add)
{
    struct engine *engine = vp->dev->host.engine;
    if (!engine || !engine->class->ioeventfd || !base)
        return;
    for (unsigned i = 0; i < vp->dev->queue_count; i++) {
        uint64_t gpa = base + NOTIFY_AT + i * NOTIFY_MULTIPLIER;
        if (engine->class->ioeventfd(engine, gpa, 2, vp->dev->kick_fd[i], add) < 0 && add)
            return; /* bar_write signals the others */
    }
}

static void bar_mapped(struct pci_device *pci, unsigned bar, uint64_t address)
{
    struct virtio_pci *vp = (struct virtio_pci *)pci;
    if (bar != 0 || vp->notify_at == address)
        return;
    ioeventfds(vp, vp->notify_at, false);
    vp->notify_at = address;
    ioeventfds(vp, address, true);
}

/* ---- PCI_CFG: the same registers through a window in config space (§4.1.4.9) ---- */

#define WINDOW_BAR 4u
#define WINDOW_OFFSET 8u
#define WINDOW_LENGTH 12u
#define WINDOW_DATA 16u

static bool window_target(const struct virtio_pci *vp, unsigned offset, uint64_t *ret_offset, unsigned *ret_size)
{
    const uint8_t *cap = vp->pci.config + vp->window;
    uint32_t at = load_le32(cap + WINDOW_OFFSET), len = load_le32(cap + WINDOW_LENGTH);
    if (offset < vp->window + WINDOW_DATA || offset >= vp->window + WINDOW_DATA + 4 || cap[WINDOW_BAR] != 0)
        return false;
    if ((len != 1 && len != 2 && len != 4) || at % len || at >= BAR_LEN || len > BAR_LEN - at)
        return false;
    *ret_offset = at;
    *ret_size = len;
    return true;
}

static void window_read(struct pci_device *pci, unsigned offset, unsigned size)
{
    (void)size;
    struct virtio_pci *vp = (struct virtio_pci *)pci;
    uint64_t at;
    unsigned len;
    if (window_target(vp, offset, &at, &len))
        store_le32(pci->config + vp->window + WINDOW_DATA, (uint32_t)bar_read(vp, at, len));
}

static void window_written(struct pci_device *pci, unsigned offset, unsigned size)
{
    (void)size;
    struct virtio_pci *vp = (struct virtio_pci *)pci;
    uint64_t at;
    unsigned len;
    if (window_target(vp, offset, &at, &len))
        bar_write(vp, at, load_le32(pci->config + vp->window + WINDOW_DATA), len);
}

/* ---- creation ---- */

/* struct virtio_pci_cap without its first two bytes: cap_len, cfg_type, bar, id, padding, offset, length, extra. */
static unsigned add_cap(struct pci_device *pci, uint8_t type, uint32_t offset, uint32_t length, unsigned extra_len,
                        const uint8_t *writable)
{
    uint8_t body[18] = {0};
    body[0] = (uint8_t)(16 + extra_len);
    body[1] = type;
    store_le32(body + 6, offset);
    store_le32(body + 10, length);
    if (type == CAP_NOTIFY)
        store_le32(body + 14, NOTIFY_MULTIPLIER);
    return pci_add_capability(pci, CAP_VENDOR, body, 14 + extra_len, writable);
}

static void add_capabilities(struct virtio_pci *vp)
{
    struct pci_device *pci = &vp->pci;
    static const uint8_t window_mask[18] = {[2] = 0xff, [6] = 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                            0xff,       0xff, 0xff, 0xff, 0xff, 0xff};
    vp->window = add_cap(pci, CAP_PCI_CFG, 0, 0, 4, window_mask);
    add_cap(pci, CAP_NOTIFY, NOTIFY_AT, vp->dev->queue_count * NOTIFY_MULTIPLIER, 4, NULL);
    if (vp->dev->config_len)
        add_cap(pci, CAP_DEVICE, DEVICE_AT, vp->dev->config_len, 0, NULL);
    add_cap(pci, CAP_ISR, ISR_AT, ISR_LEN, 0, NULL);
    add_cap(pci, CAP_COMMON, COMMON_AT, COMMON_LEN, 0, NULL);
}

static void fill_pci(struct virtio_pci *vp)
{
    struct virtio_device *dev = vp->dev;
    struct pci_device *pci = &vp->pci;
    pci->name = dev->class->name;
    pci->vendor_id = pci->subsystem_vendor_id = VENDOR_ID;
    pci->device_id = pci->subsystem_id = (uint16_t)(DEVICE_ID_BASE + dev->class->type);
    pci->revision = 1;
    pci->class_code = dev->class->pci_class;
    pci->bar[0] = (struct pci_bar){.size = BAR_LEN, .ops = &bar_ops, .arg = vp};
    pci->msix_bar = MSIX_BAR;
    pci->msix_count = dev->queue_count + 1;
    pci->config_read = window_read;
    pci->config_written = window_written;
    pci->bar_mapped = bar_mapped;
    add_capabilities(vp);
}

int virtio_pci_attach(struct virtio_device *dev, struct err *err)
{
    struct virtio_pci *vp = calloc(1, sizeof *vp);
    if (!vp)
        return err_set(err, ENOMEM, "%s '%s'", dev->class->name, dev->id);
    vp->dev = dev;
    dev->transport = vp;
    transport_reset(dev);
    fill_pci(vp);
    int r = pci_add(dev->host.pci, &vp->pci, err);
    if (r < 0) {
        free(vp);
        dev->transport = NULL;
        return r;
    }
    dev->queue_interrupt = queue_interrupt;
    dev->config_interrupt = config_interrupt;
    dev->transport_reset = transport_reset;
    dev->transport_free = transport_free;
    return 0;
}
