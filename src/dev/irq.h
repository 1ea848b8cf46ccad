/* How a device interrupts: message-signalled only. Wired lines end in the IOAPIC, which sends messages too. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct msi {
    uint64_t address; /* 0xfee..... */
    uint32_t data;
};

/* What the engine offers to the interrupt senders; thread-safe. */
struct irq_sink {
    void *arg;
    void (*send_msi)(void *arg, struct msi msi);
};

/* A wired interrupt line as its device sees it; thread-safe. */
struct irq_line {
    void *arg;
    void (*set)(void *arg, bool asserted);
};
