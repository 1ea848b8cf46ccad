/* How a guest ends or restarts itself and is asked to: ACPI sleep and reset registers, the keyboard controller's reset
 * line, the panic port, and the generic event device (GED) with its power button.
 *
 * Source: ACPI 6.4 §4.8.3.7 (sleep registers), §5.6.9 (GED); QEMU docs/specs/pvpanic. */
#pragma once

#include "base/err.h"
#include "dev/bus.h"
#include "dev/irq.h"

#define POWER_PORT 0x600 /* four ports: sleep control, sleep status, reset, GED events */
#define POWER_SLEEP_CONTROL 0
#define POWER_SLEEP_STATUS 1
#define POWER_RESET 2
#define POWER_GED_EVENTS 3
#define POWER_S5_TYPE 5
#define POWER_RESET_VALUE 1
#define POWER_GED_GSI 9
#define POWER_GED_BUTTON 0x01
#define POWER_GED_GENERATION 0x02
#define POWER_PANIC_PORT 0x505

struct power;

enum power_event { POWER_OFF, POWER_REBOOT, POWER_GUEST_PANIC, POWER_CRASH_LOADED };

/* `happened` is called from the vCPU thread that wrote the register. */
struct power_host {
    void *arg;
    void (*happened)(void *arg, enum power_event event);
};

must_check int power_create(struct bus *ports, struct irq_line ged, struct power_host host, struct power **ret_power);
void power_free(struct power *power);
void power_reset(struct power *power);
/* Signals POWER_GED_ events to the guest. Any thread. */
void power_signal(struct power *power, uint8_t events);
