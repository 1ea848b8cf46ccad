/* A virtual machine built from its configuration: memory, buses, devices, an engine and its vCPUs.
 *
 * All functions run in the loop's thread. The guest's own ends (power off, reboot, fault, panic) are handled here in that
 * thread too, after all vCPUs have stopped; a reboot restarts the guest in place. */
#pragma once

#include "base/loop.h"
#include "cpu/engine.h"
#include "virtio/limiter.h"
#include "vmm/config.h"

struct machine;
struct virtio_device;
struct block_node;

enum machine_end {
    MACHINE_POWEROFF,
    MACHINE_REBOOT, /* only with config->no_reboot */
    MACHINE_TRIPLE_FAULT,
    MACHINE_PANIC,
    MACHINE_ENGINE_ERROR,
    MACHINE_USER_QUIT, /* Ctrl-] on the console */
};

struct machine_host {
    struct loop *loop;
    void *arg;
    /* The guest is over; the vCPUs are stopped and output is flushed. `cause` is one line for people. */
    void (*ended)(void *arg, enum machine_end end, const char *cause);
};

/* Builds everything and loads the kernel; the guest does not run yet. `config` outlives the machine. On error nothing is
 * left behind. */
must_check int machine_create(const struct vm_config *config, struct machine_host host, struct machine **ret_machine,
                              struct err *err);
/* Stops the guest and drains its devices. NULL is fine. */
void machine_free(struct machine *machine);

/* Starts the guest, or goes on after a pause. */
void machine_resume(struct machine *machine);
/* Stops vCPUs and devices between two operations; returns when all are still. */
void machine_pause(struct machine *machine);
/* As a reboot by the guest, at once; a machine that is paused stays so. Where that fails it ends. */
void machine_restart(struct machine *machine);
bool machine_is_paused(const struct machine *machine);
/* Presses the power button: asks the guest to shut down. */
void machine_power_button(struct machine *machine);

/* A configured rate limit in the devices' terms. */
struct limiter_config machine_limiter(const struct vm_rate_limit *limit);
/* Opens the image `path` as the configuration of a disk says. */
must_check int machine_open_disk(const struct vm_config *config, const struct vm_disk *disk, const char *path,
                                 struct block_node **ret_node, struct err *err);

/* The group of that name; NULL: there is none. */
struct throttle_group *machine_throttle(const struct machine *machine, const char *name);
/* For the API and metrics; index as in the configuration. NULL when there is none. */
struct virtio_device *machine_disk(struct machine *machine, unsigned index);
struct virtio_device *machine_net(struct machine *machine, unsigned index);
struct virtio_device *machine_balloon(struct machine *machine);
struct virtio_device *machine_vsock(struct machine *machine);
struct virtio_device *machine_entropy(struct machine *machine);
struct engine *machine_engine(struct machine *machine);
struct mem *machine_memory(struct machine *machine);
/* Path of a console's pty, NULL when it is elsewhere. */
const char *machine_console_path(const struct machine *machine);
const char *machine_hvc_path(const struct machine *machine);
/* The terminal's size has changed: tells the guest, where there is a virtio console on it. */
void machine_window_changed(struct machine *machine);
