/* How a machine's polder-vmm is started: its arguments and descriptors, gathered one after the other. */
#pragma once

#include <stdbool.h>
#include "control/instance_impl.h"
#include "sandbox/cgroup.h"
#include "sandbox/sandbox.h"

#define LAUNCH_ARGS_MAX 128
#define LAUNCH_VOLUME_LETTER(index) ((char)('c' + (index))) /* vdc and on: two disks are the machine's own */

struct instance_runtime {
    char *vmm, *img; /* paths of programs */
    struct cgroup_host cgroups;
};

struct launch {
    struct instance *instance;
    const json_t *doc, *spec;
    json_t *start; /* what the agent is told; NULL: no agent */
    char *argv[LAUNCH_ARGS_MAX + 1];
    unsigned argc;
    int fds[SANDBOX_MAX_FDS]; /* owned */
    unsigned fd_count;
    int log_fd;               /* owned */
};

/* Appends an argument. */
must_check int launch_arg(struct launch *launch, struct err *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Opens a file for the machine; *ret_number is its descriptor there. */
must_check int launch_open(struct launch *launch, const char *path, int flags, unsigned *ret_number, struct err *err);
/* Hands over `fd`, which is closed in any case. */
must_check int launch_pass(struct launch *launch, int fd, unsigned *ret_number, struct err *err);
/* A file of the instance's folder in the state directory. */
must_check int launch_open_own(struct launch *launch, const char *name, int flags, unsigned *ret_number, struct err *err);

/* Kernel, initrd, command line and disks of each kind. */
must_check int launch_microvm(struct launch *launch, struct err *err);
must_check int launch_vm(struct launch *launch, struct err *err);
/* The volumes' disks; mounts for the agent. */
must_check int launch_volumes(struct launch *launch, struct err *err);

/* The folder of its cgroup, the caller's; NULL where the host has none. */
char *instance_cgroup(const struct instance *instance);
int instance_launch(struct instance *instance, const json_t *doc, pid_t *ret_pid, int *ret_pidfd, struct err *err);
/* What is held only while the machine runs is given back; again is fine. */
void instance_let_go(struct instance *instance, const json_t *doc);
/* Both folders of an instance that has no document. */
void instance_remove_folders(struct instances *instances, const char *id);
