/* A 16550A serial port with its FIFOs, behind eight I/O ports.
 *
 * Guest side: any vCPU thread. Host side: serial_receive and serial_take_output from one thread (the console's). Output
 * collects in a ring; while the ring is full the transmitter says "not empty", so a slow reader slows the guest's
 * port and nothing is lost. Source: National Semiconductor PC16550D data sheet. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "dev/bus.h"
#include "dev/irq.h"

#define SERIAL_COM1_BASE 0x3f8
#define SERIAL_COM1_GSI 4

struct serial;

/* Called from vCPU threads, with no lock held; both may be NULL. */
struct serial_host {
    void *arg;
    void (*output_ready)(void *arg);  /* the output ring was empty and now is not */
    void (*input_wanted)(void *arg);  /* the receive FIFO was full and now has room */
};

must_check int serial_create(struct bus *ports, uint16_t base, struct irq_line irq, struct serial_host host,
                             struct serial **ret_serial);
void serial_free(struct serial *serial);
/* Power-on state; output not yet taken stays. */
void serial_reset(struct serial *serial);

/* Puts bytes into the receive FIFO; returns how many there was room for. */
size_t serial_receive(struct serial *serial, const uint8_t *data, size_t len);
/* Moves up to `size` bytes of output to `data`; returns how many. */
size_t serial_take_output(struct serial *serial, uint8_t *data, size_t size);
