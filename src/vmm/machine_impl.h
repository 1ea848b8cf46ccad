/* Private to machine*.c. */
#pragma once

#include <stdatomic.h>
#include "dev/bus.h"
#include "dev/ioapic.h"
#include "dev/pci.h"
#include "dev/power.h"
#include "dev/rtc.h"
#include "dev/serial.h"
#include "mem/mem.h"
#include "vmm/boot/boot.h"
#include "vmm/console.h"
#include "vmm/console_ends.h"
#include "vmm/machine.h"
#include "vmm/vcpus.h"

#define MACHINE_CAUSE_SIZE 200

struct machine_devices {
    struct virtio_device *disks[VM_MAX_DISKS], *nets[VM_MAX_NETS];
    struct virtio_device *vsock, *balloon, *entropy, *hvc;
};

struct machine {
    const struct vm_config *config;
    struct machine_host host;
    struct mem *mem;
    struct bus *memory_bus, *port_bus;
    struct engine *engine;
    struct pci_root *pci;
    struct ioapic *ioapic;
    struct serial *serial;
    struct rtc *rtc;
    struct power *power;
    struct console *console;
    struct console_ends hvc_ends;
    struct machine_devices devices;
    struct throttle_group *throttles[VM_MAX_THROTTLES];
    struct vcpus *vcpus;
    int kernel_fd, initrd_fd;
    char *cmdline;
    uint8_t generation_id[16];
    atomic_bool paused; /* by the user, or not started yet */
    bool over;   /* ended; later events are ignored */
    /* First event since the last reset, from vCPU threads: enum machine_event; the vCPU it came from. */
    atomic_int event;
    unsigned event_vcpu;
};

/* What a vCPU thread reports; NO_EVENT until then. */
enum machine_event { NO_EVENT, EVENT_POWEROFF, EVENT_REBOOT, EVENT_PANIC, EVENT_TRIPLE_FAULT, EVENT_ENGINE_ERROR };

/* machine_devices.c: the virtio devices, in an order that keeps disks and interfaces in theirs. */
must_check int machine_add_devices(struct machine *machine, struct err *err);
void machine_free_devices(struct machine *machine);
/* Calls fn for every virtio device there is. */
void machine_each_device(struct machine *machine, void (*fn)(struct virtio_device *dev));

/* machine_hvc.c: the virtio console; last of the devices, as it takes the terminal. */
must_check int machine_add_hvc(struct machine *machine, struct err *err);
/* Asks for the end, as the user typed Ctrl-]. Loop's thread. */
void machine_user_quit(void *arg);

/* machine_run.c */
/* Loads the kernel and sets the vCPUs to its entry. */
must_check int machine_boot(struct machine *machine, struct err *err);
void machine_report(struct machine *machine, enum machine_event event, unsigned vcpu);
/* Command line with what the configuration adds; *ret_cmdline is the caller's. */
must_check int machine_make_cmdline(const struct vm_config *config, char **ret_cmdline, struct err *err);
