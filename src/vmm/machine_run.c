/* A machine's life: booting, pausing, restarting, ending.
 *
 * vCPU threads only record the first event and ask all vCPUs to stop; the loop's thread waits until they have and acts. */
#include "vmm/machine_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/own.h"
#include "dev/acpi/tables.h"
#include "virtio/device.h"

/* ---- boot ---- */

/* Firecracker's users say pci=off as its devices are not on PCI; ours are, so that word must not reach the kernel. */
static void drop_word(char *text, const char *word)
{
    size_t len = strlen(word);
    for (char *at = text; (at = strstr(at, word));) {
        bool starts = at == text || at[-1] == ' ', ends = !at[len] || at[len] == ' ';
        if (starts && ends)
            memmove(at, at + len + (at[len] == ' '), strlen(at + len + (at[len] == ' ')) + 1);
        else
            at += len;
    }
}

static const struct vm_disk *root_disk(const struct vm_config *config, unsigned *ret_index)
{
    for (unsigned i = 0; i < config->disk_count; i++) {
        if (config->disks[i].root) {
            *ret_index = i;
            return &config->disks[i];
        }
    }
    return NULL;
}

int machine_make_cmdline(const struct vm_config *config, char **ret_cmdline, struct err *err)
{
    const char *given = config->cmdline ? config->cmdline : "console=ttyS0";
    unsigned index = 0;
    const struct vm_disk *root = strstr(given, "root=") ? NULL : root_disk(config, &index);
    char extra[160] = "";
    if (root && root->partuuid)
        snprintf(extra, sizeof extra, " root=PARTUUID=%.100s %s", root->partuuid, root->read_only ? "ro" : "rw");
    else if (root)
        snprintf(extra, sizeof extra, " root=/dev/vd%c %s", (char)('a' + index), root->read_only ? "ro" : "rw");
    char *cmdline;
    if (asprintf(&cmdline, "%s%s", given, extra) < 0)
        return err_set(err, ENOMEM, "kernel command line");
    drop_word(cmdline, "pci=off");
    *ret_cmdline = cmdline;
    return 0;
}

static int write_acpi(struct machine *machine, struct err *err)
{
    struct acpi_config config = {.vcpus = machine->config->cpus};
    memcpy(config.generation_id, machine->generation_id, sizeof config.generation_id);
    uint8_t *area = mem_ptr(machine->mem, ACPI_BASE, ACPI_SIZE);
    if (!area)
        return err_say(err, ENOMEM, "no memory for ACPI tables");
    int r = acpi_build(&config, area, err);
    mem_mark_dirty(machine->mem, ACPI_BASE, ACPI_SIZE);
    return r;
}

int machine_boot(struct machine *machine, struct err *err)
{
    struct boot_source source = {
        .kernel_fd = machine->kernel_fd,
        .initrd_fd = machine->initrd_fd,
        .kernel_name = machine->config->kernel,
        .initrd_name = machine->config->initrd,
        .cmdline = machine->cmdline,
    };
    struct boot_start start;
    int r = write_acpi(machine, err);
    if (r == 0)
        r = boot_load(machine->mem, &source, &start, err);
    for (unsigned i = 0; r == 0 && i < machine->config->cpus; i++) {
        struct x86_state state;
        x86_state_reset(&state, i);
        if (i == 0)
            boot_set_state(&start, &state);
        r = vcpus_set_state(machine->vcpus, i, &state, err);
    }
    return r;
}

/* ---- pause and resume ---- */

void machine_pause(struct machine *machine)
{
    machine->paused = true;
    vcpus_pause(machine->vcpus);
    machine_each_device(machine, virtio_pause);
}

void machine_resume(struct machine *machine)
{
    if (machine->over || !machine->paused)
        return;
    machine->paused = false;
    machine_each_device(machine, virtio_resume);
    if (machine->event == NO_EVENT)
        vcpus_resume(machine->vcpus);
}

/* ---- the guest's own ends ---- */

static int restart(struct machine *machine, struct err *err)
{
    machine_each_device(machine, virtio_reset);
    pci_root_reset(machine->pci);
    serial_reset(machine->serial);
    ioapic_reset(machine->ioapic);
    power_reset(machine->power);
    for (unsigned i = 0; i < mem_slot_count(machine->mem); i++) {
        const struct mem_slot *slot = mem_slot(machine->mem, i);
        int r = mem_discard(machine->mem, slot->gpa, slot->len);
        if (r < 0)
            return err_set(err, -r, "clearing guest memory");
    }
    return machine_boot(machine, err);
}

static void finish(struct machine *machine, enum machine_end end, const char *cause)
{
    machine->over = true;
    machine_pause(machine);
    console_drain(machine->console);
    machine->host.ended(machine->host.arg, end, cause);
}

void machine_restart(struct machine *machine)
{
    struct err err = {0};
    if (machine->over)
        return;
    vcpus_pause(machine->vcpus);
    if (restart(machine, &err) < 0) {
        char cause[MACHINE_CAUSE_SIZE];
        snprintf(cause, sizeof cause, "the guest's restart failed: %.150s", err.message);
        finish(machine, MACHINE_ENGINE_ERROR, cause);
        return;
    }
    log_info("guest restarted");
    machine->event = NO_EVENT;
    if (!machine->paused)
        vcpus_resume(machine->vcpus);
}

static void handle_reboot(struct machine *machine)
{
    if (machine->config->no_reboot)
        finish(machine, MACHINE_REBOOT, "the guest rebooted");
    else
        machine_restart(machine);
}

static void handle_triple_fault(struct machine *machine)
{
    struct x86_state state;
    char cause[MACHINE_CAUSE_SIZE];
    vcpus_get_state(machine->vcpus, machine->event_vcpu, &state);
    snprintf(cause, sizeof cause, "triple fault of the guest on vCPU %u at rip 0x%llx (cr0 0x%llx, cr2 0x%llx, cr3 0x%llx)",
             machine->event_vcpu, (unsigned long long)state.rip, (unsigned long long)state.cr0,
             (unsigned long long)state.cr2, (unsigned long long)state.cr3);
    finish(machine, MACHINE_TRIPLE_FAULT, cause);
}

static void on_event(void *arg)
{
    struct machine *machine = arg;
    if (machine->over)
        return;
    vcpus_pause(machine->vcpus);
    switch ((enum machine_event)machine->event) {
    case EVENT_POWEROFF:
        finish(machine, MACHINE_POWEROFF, "the guest powered off");
        break;
    case EVENT_REBOOT:
        handle_reboot(machine);
        break;
    case EVENT_PANIC:
        finish(machine, MACHINE_PANIC, "the guest's kernel panicked");
        break;
    case EVENT_TRIPLE_FAULT:
        handle_triple_fault(machine);
        break;
    case EVENT_ENGINE_ERROR:
        finish(machine, MACHINE_ENGINE_ERROR, "the engine cannot go on, see the messages before");
        break;
    case NO_EVENT:
        break;
    }
}

/* Any vCPU thread. Only the first event counts, as what follows it comes from vCPUs that have not stopped yet. */
void machine_report(struct machine *machine, enum machine_event event, unsigned vcpu)
{
    int none = NO_EVENT;
    if (!atomic_compare_exchange_strong(&machine->event, &none, (int)event))
        return;
    machine->event_vcpu = vcpu;
    vcpus_request_pause(machine->vcpus);
    loop_call(machine->host.loop, on_event, machine);
}
