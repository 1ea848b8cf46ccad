/* Power registers. The GED's event byte clears when read; its line pulses, as the interrupt is edge-triggered. */
#include "dev/power.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#define SLEEP_ENABLE 0x20
#define SLEEP_TYPE(value) (((value) >> 2) & 7)
#define KEYBOARD_COMMAND 0x64
#define KEYBOARD_PULSE_RESET 0xfe
#define PANIC_PANICKED 0x01
#define PANIC_CRASH_LOADED 0x02

struct power {
    pthread_mutex_t lock;
    struct bus *ports;
    struct irq_line ged;
    struct power_host host;
    uint8_t events;
};

static uint64_t power_read(void *arg, uint64_t offset, unsigned size)
{
    struct power *power = arg;
    if (offset != POWER_GED_EVENTS || size != 1)
        return 0;
    pthread_mutex_lock(&power->lock);
    uint8_t events = power->events;
    power->events = 0;
    pthread_mutex_unlock(&power->lock);
    return events;
}

static void power_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    struct power *power = arg;
    if (size != 1)
        return;
    if (offset == POWER_SLEEP_CONTROL && (value & SLEEP_ENABLE) && SLEEP_TYPE(value) == POWER_S5_TYPE)
        power->host.happened(power->host.arg, POWER_OFF);
    else if (offset == POWER_RESET && value == POWER_RESET_VALUE)
        power->host.happened(power->host.arg, POWER_REBOOT);
}

/* Status reads zero: no keyboard, never busy. */
static uint64_t keyboard_read(void *arg, uint64_t offset, unsigned size)
{
    (void)arg, (void)offset, (void)size;
    return 0;
}

static void keyboard_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    struct power *power = arg;
    (void)offset;
    if (size == 1 && value == KEYBOARD_PULSE_RESET)
        power->host.happened(power->host.arg, POWER_REBOOT);
}

static uint64_t panic_read(void *arg, uint64_t offset, unsigned size)
{
    (void)arg, (void)offset, (void)size;
    return PANIC_PANICKED | PANIC_CRASH_LOADED;
}

static void panic_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    struct power *power = arg;
    (void)offset, (void)size;
    if (value & PANIC_PANICKED)
        power->host.happened(power->host.arg, POWER_GUEST_PANIC);
    else if (value & PANIC_CRASH_LOADED)
        power->host.happened(power->host.arg, POWER_CRASH_LOADED);
}

static const struct {
    uint16_t port, count;
    struct bus_ops ops;
} regions[] = {
    {POWER_PORT, 4, {.name = "acpi-power", .read = power_read, .write = power_write}},
    {KEYBOARD_COMMAND, 1, {.name = "i8042-reset", .read = keyboard_read, .write = keyboard_write}},
    {POWER_PANIC_PORT, 1, {.name = "pvpanic", .read = panic_read, .write = panic_write}},
};

#define REGION_COUNT (sizeof regions / sizeof regions[0])

static int power_map(struct power *power)
{
    for (unsigned i = 0; i < REGION_COUNT; i++) {
        int r = bus_add(power->ports, regions[i].port, regions[i].count, &regions[i].ops, power);
        if (r == 0)
            continue;
        while (i-- > 0)
            bus_remove(power->ports, regions[i].port);
        return r;
    }
    return 0;
}

int power_create(struct bus *ports, struct irq_line ged, struct power_host host, struct power **ret_power)
{
    struct power *power = calloc(1, sizeof *power);
    if (!power)
        return -ENOMEM;
    pthread_mutex_init(&power->lock, NULL);
    power->ports = ports;
    power->ged = ged;
    power->host = host;
    int r = power_map(power);
    if (r < 0) {
        free(power);
        return r;
    }
    *ret_power = power;
    return 0;
}

void power_free(struct power *power)
{
    if (!power)
        return;
    for (unsigned i = 0; i < REGION_COUNT; i++)
        bus_remove(power->ports, regions[i].port);
    pthread_mutex_destroy(&power->lock);
    free(power);
}

void power_reset(struct power *power)
{
    pthread_mutex_lock(&power->lock);
    power->events = 0;
    pthread_mutex_unlock(&power->lock);
}

void power_signal(struct power *power, uint8_t events)
{
    pthread_mutex_lock(&power->lock);
    power->events |= events;
    pthread_mutex_unlock(&power->lock);
    power->ged.set(power->ged.arg, true);
    power->ged.set(power->ged.arg, false);
}
