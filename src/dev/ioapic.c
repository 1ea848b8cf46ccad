/* The I/O APIC's redirection table and its two indirect registers.
 *
 * All state is under one lock; a message is sent after it is released, as the sink may take its own. At most IOAPIC_PINS
 * messages leave per call. */
#include "dev/ioapic.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#define REG_SELECT 0x00
#define REG_WINDOW 0x10
#define REG_EOI 0x40
#define INDEX_ID 0x00
#define INDEX_VERSION 0x01
#define INDEX_ARBITRATION 0x02
#define INDEX_TABLE 0x10
#define VERSION 0x20

#define RTE_VECTOR UINT64_C(0xff)
#define RTE_DELIVERY_MODE UINT64_C(0x700)
#define RTE_LOGICAL (UINT64_C(1) << 11)
#define RTE_PENDING (UINT64_C(1) << 12)
#define RTE_REMOTE_IRR (UINT64_C(1) << 14)
#define RTE_LEVEL (UINT64_C(1) << 15)
#define RTE_MASKED (UINT64_C(1) << 16)
#define RTE_READ_ONLY (RTE_PENDING | RTE_REMOTE_IRR)
#define RTE_WRITABLE UINT64_C(0xff0000000001efff)

struct pin {
    struct ioapic *ioapic;
    unsigned index;
    bool asserted;
    uint64_t entry;
};

struct ioapic {
    pthread_mutex_t lock;
    struct bus *memory;
    struct irq_sink sink;
    uint8_t select, id;
    struct pin pins[IOAPIC_PINS];
};

/* Messages to send once the lock is gone. */
struct outbox {
    unsigned count;
    struct msi messages[IOAPIC_PINS];
};

static struct msi entry_message(uint64_t entry)
{
    struct msi msi = {
        .address = 0xfee00000 | ((entry >> 56) << 12) | (entry & RTE_LOGICAL ? 4 : 0),
        .data = (uint32_t)(entry & (RTE_VECTOR | RTE_DELIVERY_MODE)),
    };
    if (entry & RTE_LEVEL)
        msi.data |= 1u << 15 | 1u << 14;
    return msi;
}

static void pin_fire(struct pin *pin, struct outbox *out)
{
    if (pin->entry & RTE_MASKED)
        return;
    if (pin->entry & RTE_LEVEL) {
        if (pin->entry & RTE_REMOTE_IRR)
            return;
        pin->entry |= RTE_REMOTE_IRR;
    }
    out->messages[out->count++] = entry_message(pin->entry);
}

static void outbox_send(const struct ioapic *ioapic, const struct outbox *out)
{
    for (unsigned i = 0; i < out->count; i++)
        ioapic->sink.send_msi(ioapic->sink.arg, out->messages[i]);
}

static uint32_t read_index(const struct ioapic *ioapic)
{
    if (ioapic->select == INDEX_ID || ioapic->select == INDEX_ARBITRATION)
        return (uint32_t)ioapic->id << 24;
    if (ioapic->select == INDEX_VERSION)
        return (IOAPIC_PINS - 1) << 16 | VERSION;
    unsigned word = ioapic->select - INDEX_TABLE;
    if (ioapic->select < INDEX_TABLE || word >= 2 * IOAPIC_PINS)
        return 0;
    return (uint32_t)(ioapic->pins[word / 2].entry >> (word & 1 ? 32 : 0));
}

static void write_entry(struct pin *pin, unsigned half, uint32_t value, struct outbox *out)
{
    uint64_t mask = half ? UINT64_C(0xffffffff00000000) : UINT64_C(0xffffffff);
    uint64_t wanted = half ? (uint64_t)value << 32 : value;
    uint64_t writable = mask & RTE_WRITABLE & ~RTE_READ_ONLY;
    pin->entry = (pin->entry & ~writable) | (wanted & writable);
    if (!(pin->entry & RTE_LEVEL))
        pin->entry &= ~RTE_REMOTE_IRR;
    else if (pin->asserted)
        pin_fire(pin, out);
}

static void write_index(struct ioapic *ioapic, uint32_t value, struct outbox *out)
{
    if (ioapic->select == INDEX_ID)
        ioapic->id = (value >> 24) & 0x0f;
    unsigned word = ioapic->select - INDEX_TABLE;
    if (ioapic->select >= INDEX_TABLE && word < 2 * IOAPIC_PINS)
        write_entry(&ioapic->pins[word / 2], word & 1, value, out);
}

static void end_of_interrupt(struct ioapic *ioapic, uint8_t vector, struct outbox *out)
{
    for (unsigned i = 0; i < IOAPIC_PINS; i++) {
        struct pin *pin = &ioapic->pins[i];
        if (!(pin->entry & RTE_REMOTE_IRR) || (pin->entry & RTE_VECTOR) != vector)
            continue;
        pin->entry &= ~RTE_REMOTE_IRR;
        if (pin->asserted)
            pin_fire(pin, out);
    }
}

static uint64_t ioapic_read(void *arg, uint64_t offset, unsigned size)
{
    struct ioapic *ioapic = arg;
    (void)size;
    uint32_t value = 0;
    pthread_mutex_lock(&ioapic->lock);
    if (offset == REG_SELECT)
        value = ioapic->select;
    else if (offset == REG_WINDOW)
        value = read_index(ioapic);
    pthread_mutex_unlock(&ioapic->lock);
    return value;
}

static void ioapic_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    struct ioapic *ioapic = arg;
    struct outbox out = {0};
    pthread_mutex_lock(&ioapic->lock);
    if (offset == REG_SELECT)
        ioapic->select = (uint8_t)value;
    else if (offset == REG_WINDOW && size >= 4)
        write_index(ioapic, (uint32_t)value, &out);
    else if (offset == REG_EOI)
        end_of_interrupt(ioapic, (uint8_t)value, &out);
    pthread_mutex_unlock(&ioapic->lock);
    outbox_send(ioapic, &out);
}

static const struct bus_ops ioapic_ops = {.name = "ioapic", .read = ioapic_read, .write = ioapic_write};

void ioapic_reset(struct ioapic *ioapic)
{
    pthread_mutex_lock(&ioapic->lock);
    ioapic->select = 0;
    ioapic->id = IOAPIC_ID;
    for (unsigned i = 0; i < IOAPIC_PINS; i++)
        ioapic->pins[i].entry = RTE_MASKED;
    pthread_mutex_unlock(&ioapic->lock);
}

int ioapic_create(struct bus *memory, struct irq_sink sink, struct ioapic **ret_ioapic)
{
    struct ioapic *ioapic = calloc(1, sizeof *ioapic);
    if (!ioapic)
        return -ENOMEM;
    pthread_mutex_init(&ioapic->lock, NULL);
    ioapic->memory = memory;
    ioapic->sink = sink;
    for (unsigned i = 0; i < IOAPIC_PINS; i++)
        ioapic->pins[i] = (struct pin){.ioapic = ioapic, .index = i};
    ioapic_reset(ioapic);
    int r = bus_add(memory, IOAPIC_BASE, IOAPIC_SIZE, &ioapic_ops, ioapic);
    if (r < 0) {
        free(ioapic);
        return r;
    }
    *ret_ioapic = ioapic;
    return 0;
}

void ioapic_free(struct ioapic *ioapic)
{
    if (!ioapic)
        return;
    bus_remove(ioapic->memory, IOAPIC_BASE);
    pthread_mutex_destroy(&ioapic->lock);
    free(ioapic);
}

void ioapic_set_line(struct ioapic *ioapic, unsigned pin_index, bool asserted)
{
    struct pin *pin = &ioapic->pins[pin_index];
    struct outbox out = {0};
    pthread_mutex_lock(&ioapic->lock);
    bool rose = asserted && !pin->asserted;
    pin->asserted = asserted;
    if (rose)
        pin_fire(pin, &out);
    pthread_mutex_unlock(&ioapic->lock);
    outbox_send(ioapic, &out);
}

static void line_set(void *arg, bool asserted)
{
    struct pin *pin = arg;
    ioapic_set_line(pin->ioapic, pin->index, asserted);
}

struct irq_line ioapic_line(struct ioapic *ioapic, unsigned pin)
{
    return (struct irq_line){.arg = &ioapic->pins[pin], .set = line_set};
}

void ioapic_eoi(struct ioapic *ioapic, uint8_t vector)
{
    struct outbox out = {0};
    pthread_mutex_lock(&ioapic->lock);
    end_of_interrupt(ioapic, vector, &out);
    pthread_mutex_unlock(&ioapic->lock);
    outbox_send(ioapic, &out);
}
