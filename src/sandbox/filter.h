/* What a confined program may ask of the kernel: Landlock, which leaves it no path, or one folder, and no network, and seccomp filters made
 * at build time (filter_gen.c). A system call that is not on the list ends the process with SIGSYS, after its
 * number was said on standard error.
 * Sources: seccomp(2), Documentation/userspace-api/landlock.rst. */
#pragma once

#include "base/err.h"

enum sandbox_filter {
    SANDBOX_FILTER_JIT, /* all threads of polder-vmm while a guest runs on the engine jit */
    SANDBOX_FILTER_KVM, /* on the engine kvm: no executable memory, but requests to the virtual machine that is there */
    /* Besides, each kind of thread: */
    SANDBOX_FILTER_VCPU,   /* runs guest code: no disk, no sockets */
    SANDBOX_FILTER_LOOP,   /* the program's first: devices, network, consoles, control of the machine; submits no disk requests */
    SANDBOX_FILTER_DISK,   /* a disk's, and its workers: no sockets */
    SANDBOX_FILTER_API,    /* HTTP and metrics: no disk, no virtual machine */
    SANDBOX_FILTER_UNPACK, /* all of polder-unpack: files below its root, and descriptors */
    SANDBOX_FILTERS
};

/* For the calling thread and those that it starts. What is below `folder_fd` stays (-1: nothing). A kernel without Landlock, or
 * with one that knows no links between folders where there is one, is fine: *ret_abi is 0 then. */
must_check int sandbox_landlock(int folder_fd, int *ret_abi, struct err *err);
/* For all threads of the process when `all`, else for the calling one; only ever adds to what is forbidden. Needs no_new_privs. */
must_check int sandbox_filter(enum sandbox_filter which, bool all, struct err *err);
