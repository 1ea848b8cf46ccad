/* I/O APIC with 24 pins: turns wired lines into messages. Source: Intel 82093AA data sheet, ICH9 §13.5 (EOI register). */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "dev/bus.h"
#include "dev/irq.h"

#define IOAPIC_BASE UINT64_C(0xfec00000)
#define IOAPIC_SIZE 0x1000
#define IOAPIC_PINS 24
#define IOAPIC_ID 0

struct ioapic;

must_check int ioapic_create(struct bus *memory, struct irq_sink sink, struct ioapic **ret_ioapic);
void ioapic_free(struct ioapic *ioapic);
/* All pins masked; the state of the input lines stays, it is their devices'. */
void ioapic_reset(struct ioapic *ioapic);

/* Any thread. `pin` is 0..IOAPIC_PINS-1. */
void ioapic_set_line(struct ioapic *ioapic, unsigned pin, bool asserted);
/* The line of `pin` for a device. */
struct irq_line ioapic_line(struct ioapic *ioapic, unsigned pin);
/* A CPU ended the level-triggered interrupt `vector`; a line still asserted interrupts again. */
void ioapic_eoi(struct ioapic *ioapic, uint8_t vector);
