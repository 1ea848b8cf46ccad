/* Building a machine and taking it apart. Order: memory, engine, buses, devices, vCPUs, kernel; freed backwards. */
#include "vmm/machine_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/fdname.h"
#include "virtio/device.h"
#include "vmm/jail.h"

/* ---- what the engine calls, on vCPU threads ---- */

static uint64_t port_read(void *arg, uint16_t port, unsigned size)
{
    struct machine *machine = arg;
    return bus_read(machine->port_bus, port, size);
}

static void port_write(void *arg, uint16_t port, uint64_t value, unsigned size)
{
    struct machine *machine = arg;
    bus_write(machine->port_bus, port, value, size);
}

static uint64_t mmio_read(void *arg, uint64_t gpa, unsigned size)
{
    struct machine *machine = arg;
    return bus_read(machine->memory_bus, gpa, size);
}

static void mmio_write(void *arg, uint64_t gpa, uint64_t value, unsigned size)
{
    struct machine *machine = arg;
    bus_write(machine->memory_bus, gpa, value, size);
}

static void eoi(void *arg, uint8_t vector)
{
    struct machine *machine = arg;
    ioapic_eoi(machine->ioapic, vector);
}

static void send_msi(void *arg, struct msi msi)
{
    struct machine *machine = arg;
    machine->engine->class->send_msi(machine->engine, msi);
}

static void power_happened(void *arg, enum power_event event)
{
    struct machine *machine = arg;
    switch (event) {
    case POWER_OFF:
        machine_report(machine, EVENT_POWEROFF, 0);
        break;
    case POWER_REBOOT:
        machine_report(machine, EVENT_REBOOT, 0);
        break;
    case POWER_GUEST_PANIC:
        machine_report(machine, EVENT_PANIC, 0);
        break;
    case POWER_CRASH_LOADED: /* the guest dumps itself and reboots */
        log_guest("pvpanic", "the guest panicked and starts its crash kernel");
        break;
    }
}

static void vcpu_begins(void *arg)
{
    const struct machine *machine = arg;
    jail_close_thread(machine->config, SANDBOX_FILTER_VCPU);
}

static void vcpu_ended(void *arg, unsigned index, enum vcpu_exit why)
{
    machine_report(arg, why == VCPU_EXIT_TRIPLE_FAULT ? EVENT_TRIPLE_FAULT : EVENT_ENGINE_ERROR, index);
}

void machine_user_quit(void *arg)
{
    struct machine *machine = arg;
    if (machine->over)
        return;
    machine->over = true;
    machine_pause(machine);
    machine->host.ended(machine->host.arg, MACHINE_USER_QUIT, "left from the console");
}

/* ---- building ---- */

static int create_engine(struct machine *machine, struct err *err)
{
    const struct vm_config *config = machine->config;
    const struct engine_class *class;
    int r = engine_select(config->engine, config->kvm_device, &class, err);
    if (r < 0)
        return r;
    struct engine_config engine_config = {
        .mem = machine->mem,
        .machine = {.arg = machine,
                    .port_read = port_read,
                    .port_write = port_write,
                    .mmio_read = mmio_read,
                    .mmio_write = mmio_write,
                    .eoi = eoi},
        .vcpus = config->cpus,
        .cpu_model = config->cpu_model,
        .options = config->engine_options,
        .jit_opt = config->jit_opt,
        .kvm_device = config->kvm_device,
    };
    if (class->create(&engine_config, &machine->engine, err) < 0)
        return err_ctx(err, "engine %s", class->name);
    return 0;
}

static int create_buses(struct machine *machine, struct err *err)
{
    struct irq_sink sink = {.arg = machine, .send_msi = send_msi};
    if (bus_create(&machine->memory_bus) < 0 || bus_create(&machine->port_bus) < 0 ||
        ioapic_create(machine->memory_bus, sink, &machine->ioapic) < 0)
        return err_set(err, ENOMEM, "buses");
    return pci_root_create(machine->memory_bus, machine->port_bus, sink, &machine->pci, err);
}

static int create_board(struct machine *machine, struct err *err)
{
    struct power_host power_host = {.arg = machine, .happened = power_happened};
    int r = console_create(&machine->config->console, machine->host.loop, machine_user_quit, machine, &machine->console, err);
    if (r < 0)
        return r;
    if (serial_create(machine->port_bus, SERIAL_COM1_BASE, ioapic_line(machine->ioapic, SERIAL_COM1_GSI),
                      console_serial_host(machine->console), &machine->serial) < 0 ||
        rtc_create(machine->port_bus, &machine->rtc) < 0 ||
        power_create(machine->port_bus, ioapic_line(machine->ioapic, POWER_GED_GSI), power_host, &machine->power) < 0)
        return err_set(err, ENOMEM, "board devices");
    console_attach(machine->console, machine->serial);
    return 0;
}

static int open_file(const char *what, const char *path, int *ret_fd, struct err *err)
{
    int fd = fdname_open(path, O_RDONLY, 0);
    if (fd < 0)
        return err_set(err, errno, "%s '%s'", what, path);
    *ret_fd = fd;
    return 0;
}

/* Held open: a reboot loads the same files again, from wherever the process can reach by then. */
static int open_kernel(struct machine *machine, struct err *err)
{
    const struct vm_config *config = machine->config;
    int r = open_file("kernel", config->kernel, &machine->kernel_fd, err);
    if (r == 0 && config->initrd)
        r = open_file("initrd", config->initrd, &machine->initrd_fd, err);
    if (r == 0)
        r = machine_make_cmdline(config, &machine->cmdline, err);
    return r;
}

static int build(struct machine *machine, struct err *err)
{
    const struct vm_config *config = machine->config;
    if (getrandom(machine->generation_id, sizeof machine->generation_id, 0) < 0)
        return err_set(err, errno, "random generation id");
    int r = open_kernel(machine, err);
    if (r == 0)
        r = mem_create(config->memory_bytes, config->hugepages, &machine->mem, err);
    if (r == 0)
        r = create_engine(machine, err);
    if (r == 0)
        r = create_buses(machine, err);
    if (r == 0)
        r = machine_add_devices(machine, err);
    if (r == 0)
        r = vcpus_create(machine->engine, config->cpus, vcpu_begins, vcpu_ended, machine, &machine->vcpus, err);
    if (r == 0)
        r = machine_boot(machine, err);
    /* The console comes last, so that errors before find the terminal as it was. */
    if (r == 0)
        r = create_board(machine, err);
    return r == 0 ? machine_add_hvc(machine, err) : r;
}

int machine_create(const struct vm_config *config, struct machine_host host, struct machine **ret_machine,
                   struct err *err)
{
    int r = vm_config_check(config, err);
    if (r < 0)
        return r;
    struct machine *machine = calloc(1, sizeof *machine);
    if (!machine)
        return err_set(err, ENOMEM, "machine");
    machine->config = config;
    machine->host = host;
    machine->kernel_fd = machine->initrd_fd = -1;
    machine->hvc_ends = (struct console_ends){.in_fd = -1, .out_fd = -1, .pty_slave = -1};
    machine->paused = true;
    r = build(machine, err);
    if (r < 0) {
        machine_free(machine);
        return r;
    }
    *ret_machine = machine;
    return 0;
}

void machine_free(struct machine *machine)
{
    if (!machine)
        return;
    if (machine->vcpus) {
        vcpus_pause(machine->vcpus);
        machine_each_device(machine, virtio_pause); /* no thread of theirs writes memory once the vCPUs are gone */
    }
    vcpus_free(machine->vcpus);
    machine_free_devices(machine);
    console_ends_close(&machine->hvc_ends);
    power_free(machine->power);
    rtc_free(machine->rtc);
    if (machine->console && machine->serial)
        console_drain(machine->console);
    console_free(machine->console);
    serial_free(machine->serial);
    pci_root_free(machine->pci);
    ioapic_free(machine->ioapic);
    if (machine->engine)
        machine->engine->class->free(machine->engine);
    bus_free(machine->port_bus);
    bus_free(machine->memory_bus);
    mem_free(machine->mem);
    free(machine->cmdline);
    if (machine->initrd_fd >= 0)
        close(machine->initrd_fd);
    if (machine->kernel_fd >= 0)
        close(machine->kernel_fd);
    free(machine);
}

/* ---- looking inside ---- */

bool machine_is_paused(const struct machine *machine)
{
    return machine->paused;
}

void machine_power_button(struct machine *machine)
{
    power_signal(machine->power, POWER_GED_BUTTON);
}

struct virtio_device *machine_disk(struct machine *machine, unsigned index)
{
    return index < VM_MAX_DISKS ? machine->devices.disks[index] : NULL;
}

struct virtio_device *machine_net(struct machine *machine, unsigned index)
{
    return index < VM_MAX_NETS ? machine->devices.nets[index] : NULL;
}

struct virtio_device *machine_balloon(struct machine *machine)
{
    return machine->devices.balloon;
}

struct virtio_device *machine_vsock(struct machine *machine)
{
    return machine->devices.vsock;
}

struct virtio_device *machine_entropy(struct machine *machine)
{
    return machine->devices.entropy;
}

struct engine *machine_engine(struct machine *machine)
{
    return machine->engine;
}

struct mem *machine_memory(struct machine *machine)
{
    return machine->mem;
}

const char *machine_console_path(const struct machine *machine)
{
    return console_pty_path(machine->console);
}

const char *machine_hvc_path(const struct machine *machine)
{
    return *machine->hvc_ends.pty_path ? machine->hvc_ends.pty_path : NULL;
}
