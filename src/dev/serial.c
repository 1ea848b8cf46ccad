/* 16550A: registers, the two FIFOs and the one interrupt they share.
 *
 * Invariant: after every change update_irq() recomputes the line from the state, under the lock. Characters move at once:
 * there is no baud rate, so a receive FIFO below its trigger level reports "character timeout" immediately. */
#include "dev/serial.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCRATCH, REG_COUNT };

#define IER_RECEIVE 0x01
#define IER_THRE 0x02
#define IER_LINE 0x04
#define IER_MODEM 0x08
#define IIR_NONE 0x01
#define IIR_MODEM 0x00
#define IIR_THRE 0x02
#define IIR_RECEIVE 0x04
#define IIR_LINE 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFOS_ON 0xc0
#define FCR_ENABLE 0x01
#define FCR_CLEAR_RECEIVE 0x02
#define FCR_CLEAR_TRANSMIT 0x04
#define LCR_DLAB 0x80
#define MCR_DTR 0x01
#define MCR_RTS 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOPBACK 0x10
#define LSR_DATA 0x01
#define LSR_OVERRUN 0x02
#define LSR_ERRORS 0x1e
#define LSR_THRE 0x20
#define LSR_TEMT 0x40
#define MSR_CTS 0x10
#define MSR_DSR 0x20
#define MSR_RI 0x40
#define MSR_DCD 0x80

#define FIFO_SIZE 16
#define OUTPUT_SIZE 4096 /* power of two */

struct serial {
    pthread_mutex_t lock;
    struct irq_line irq;
    struct serial_host host;
    struct bus *ports;
    uint16_t base;

    uint8_t ier, lcr, mcr, msr, scratch, fcr, lsr_errors, divisor[2];
    bool thre_pending; /* transmitter interrupt not yet acknowledged by an IIR read */
    bool irq_level;
    uint8_t fifo[FIFO_SIZE];
    unsigned fifo_start, fifo_count;
    unsigned output_start, output_count;
    uint8_t output[OUTPUT_SIZE];
};

static unsigned fifo_capacity(const struct serial *s)
{
    return s->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

/* No byte can come in: the FIFO is full, or loopback cuts the outside line off. */
static bool receive_blocked(const struct serial *s)
{
    return s->fifo_count >= fifo_capacity(s) || (s->mcr & MCR_LOOPBACK);
}

static unsigned receive_trigger(const struct serial *s)
{
    static const uint8_t levels[4] = {1, 4, 8, 14};
    return s->fcr & FCR_ENABLE ? levels[s->fcr >> 6] : 1;
}

/* The source of highest priority, as IIR shows it. */
static uint8_t interrupt_source(const struct serial *s)
{
    if ((s->ier & IER_LINE) && (s->lsr_errors & LSR_ERRORS))
        return IIR_LINE;
    if ((s->ier & IER_RECEIVE) && s->fifo_count)
        return s->fifo_count >= receive_trigger(s) ? IIR_RECEIVE : IIR_TIMEOUT;
    if ((s->ier & IER_THRE) && s->thre_pending)
        return IIR_THRE;
    if ((s->ier & IER_MODEM) && (s->msr & 0x0f))
        return IIR_MODEM;
    return IIR_NONE;
}

static void update_irq(struct serial *s)
{
    bool level = interrupt_source(s) != IIR_NONE;
    if (level == s->irq_level)
        return;
    s->irq_level = level;
    s->irq.set(s->irq.arg, level);
}

static bool fifo_put(struct serial *s, uint8_t byte)
{
    if (s->fifo_count >= fifo_capacity(s))
        return false;
    s->fifo[(s->fifo_start + s->fifo_count++) % FIFO_SIZE] = byte;
    return true;
}

static uint8_t fifo_get(struct serial *s)
{
    if (!s->fifo_count)
        return 0;
    uint8_t byte = s->fifo[s->fifo_start];
    s->fifo_start = (s->fifo_start + 1) % FIFO_SIZE;
    s->fifo_count--;
    return byte;
}

/* In loopback the modem outputs come back as inputs; otherwise a peer is always there and ready. */
static uint8_t modem_lines(const struct serial *s)
{
    if (!(s->mcr & MCR_LOOPBACK))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    return (uint8_t)((s->mcr & MCR_DTR ? MSR_DSR : 0) | (s->mcr & MCR_RTS ? MSR_CTS : 0) |
                     (s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static void update_modem(struct serial *s)
{
    uint8_t lines = modem_lines(s), changed = (uint8_t)((s->msr ^ lines) & 0xf0);
    uint8_t delta = (uint8_t)((changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4);
    if ((s->msr & MSR_RI) && !(lines & MSR_RI))
        delta |= 0x04; /* the ring indicator tells only of its trailing edge */
    s->msr = (uint8_t)(lines | (s->msr & 0x0f) | delta);
}

static uint8_t line_status(const struct serial *s)
{
    uint8_t lsr = s->lsr_errors;
    if (s->fifo_count)
        lsr |= LSR_DATA;
    if (s->output_count < OUTPUT_SIZE)
        lsr |= LSR_THRE | LSR_TEMT;
    return lsr;
}

static uint8_t read_iir(struct serial *s)
{
    uint8_t source = interrupt_source(s);
    if (source == IIR_THRE)
        s->thre_pending = false;
    return source | (s->fcr & FCR_ENABLE ? IIR_FIFOS_ON : 0);
}

static uint8_t read_register(struct serial *s, unsigned reg)
{
    uint8_t value;
    switch (reg) {
    case REG_DATA:
        return s->lcr & LCR_DLAB ? s->divisor[0] : fifo_get(s);
    case REG_IER:
        return s->lcr & LCR_DLAB ? s->divisor[1] : s->ier;
    case REG_IIR_FCR:
        return read_iir(s);
    case REG_LCR:
        return s->lcr;
    case REG_MCR:
        return s->mcr;
    case REG_LSR:
        value = line_status(s);
        s->lsr_errors = 0;
        return value;
    case REG_MSR:
        value = s->msr;
        s->msr &= 0xf0;
        return value;
    default:
        return s->scratch;
    }
}

static void transmit(struct serial *s, uint8_t byte)
{
    if (s->mcr & MCR_LOOPBACK) {
        if (!fifo_put(s, byte))
            s->lsr_errors |= LSR_OVERRUN;
    } else if (s->output_count < OUTPUT_SIZE) {
        s->output[(s->output_start + s->output_count++) % OUTPUT_SIZE] = byte;
    }
    /* Empty again at once; when the ring is full, serial_take_output says so later. */
    s->thre_pending = s->output_count < OUTPUT_SIZE;
}

static void write_ier(struct serial *s, uint8_t value)
{
    value &= 0x0f;
    if ((value & ~s->ier & IER_THRE) && s->output_count < OUTPUT_SIZE)
        s->thre_pending = true;
    s->ier = value;
}

static void write_fcr(struct serial *s, uint8_t value)
{
    if ((value ^ s->fcr) & FCR_ENABLE)
        value |= FCR_CLEAR_RECEIVE;
    if (value & FCR_CLEAR_RECEIVE)
        s->fifo_start = s->fifo_count = 0;
    if (value & FCR_CLEAR_TRANSMIT)
        s->thre_pending = true;
    s->fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
}

static void write_register(struct serial *s, unsigned reg, uint8_t value)
{
    switch (reg) {
    case REG_DATA:
        if (s->lcr & LCR_DLAB)
            s->divisor[0] = value;
        else
            transmit(s, value);
        break;
    case REG_IER:
        if (s->lcr & LCR_DLAB)
            s->divisor[1] = value;
        else
            write_ier(s, value);
        break;
    case REG_IIR_FCR:
        write_fcr(s, value);
        break;
    case REG_LCR:
        s->lcr = value;
        break;
    case REG_MCR:
        s->mcr = value & 0x1f;
        update_modem(s);
        break;
    case REG_SCRATCH:
        s->scratch = value;
        break;
    default: /* line and modem status are read-only */
        break;
    }
}

/* Wider accesses are split: each byte lane is a register of its own. */
static uint64_t serial_read(void *arg, uint64_t offset, unsigned size)
{
    struct serial *s = arg;
    uint64_t value = 0;
    pthread_mutex_lock(&s->lock);
    bool was_blocked = receive_blocked(s);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)read_register(s, (unsigned)offset + i) << (8 * i);
    bool room = was_blocked && !receive_blocked(s);
    update_irq(s);
    pthread_mutex_unlock(&s->lock);
    if (room && s->host.input_wanted)
        s->host.input_wanted(s->host.arg);
    return value;
}

static void serial_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    struct serial *s = arg;
    pthread_mutex_lock(&s->lock);
    bool was_empty = !s->output_count, was_blocked = receive_blocked(s);
    for (unsigned i = 0; i < size; i++)
        write_register(s, (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
    bool ready = was_empty && s->output_count, room = was_blocked && !receive_blocked(s);
    update_irq(s);
    pthread_mutex_unlock(&s->lock);
    if (ready && s->host.output_ready)
        s->host.output_ready(s->host.arg);
    if (room && s->host.input_wanted)
        s->host.input_wanted(s->host.arg);
}

static const struct bus_ops serial_ops = {.name = "serial", .read = serial_read, .write = serial_write};

static void set_power_on(struct serial *s)
{
    s->ier = s->lcr = s->mcr = s->scratch = s->fcr = s->lsr_errors = 0;
    s->divisor[0] = 12; /* 9600 baud */
    s->divisor[1] = 0;
    s->fifo_start = s->fifo_count = 0;
    s->thre_pending = false;
    s->msr = modem_lines(s);
}

int serial_create(struct bus *ports, uint16_t base, struct irq_line irq, struct serial_host host,
                  struct serial **ret_serial)
{
    struct serial *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    pthread_mutex_init(&s->lock, NULL);
    s->irq = irq;
    s->host = host;
    s->ports = ports;
    s->base = base;
    set_power_on(s);
    int r = bus_add(ports, base, REG_COUNT, &serial_ops, s);
    if (r < 0) {
        free(s);
        return r;
    }
    *ret_serial = s;
    return 0;
}

void serial_free(struct serial *s)
{
    if (!s)
        return;
    bus_remove(s->ports, s->base);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

void serial_reset(struct serial *s)
{
    pthread_mutex_lock(&s->lock);
    set_power_on(s);
    update_irq(s);
    pthread_mutex_unlock(&s->lock);
}

size_t serial_receive(struct serial *s, const uint8_t *data, size_t len)
{
    size_t taken = 0;
    pthread_mutex_lock(&s->lock);
    while (taken < len && !receive_blocked(s))
        fifo_put(s, data[taken++]);
    update_irq(s);
    pthread_mutex_unlock(&s->lock);
    return taken;
}

size_t serial_take_output(struct serial *s, uint8_t *data, size_t size)
{
    size_t taken = 0;
    pthread_mutex_lock(&s->lock);
    bool was_full = s->output_count == OUTPUT_SIZE;
    while (taken < size && s->output_count) {
        data[taken++] = s->output[s->output_start];
        s->output_start = (s->output_start + 1) % OUTPUT_SIZE;
        s->output_count--;
    }
    if (was_full && taken)
        s->thre_pending = true;
    update_irq(s);
    pthread_mutex_unlock(&s->lock);
    return taken;
}
