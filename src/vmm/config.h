/* What a virtual machine consists of, as asked for by command line, config file or API. Plain data: strings are owned by the
 * struct (NULL when not given), arrays are in the order given. The loop thread owns it until the machine is built.
 * vm_config_check() says what is wrong in one line before anything is made. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/log.h"
#include "block/throttle.h"

#define VM_MAX_VCPUS 32
#define VM_MAX_DISKS 16
#define VM_MAX_NETS 8
#define VM_MAX_THROTTLES 8
#define VM_MAX_BACKING 63 /* what a qcow2 image can have below it */

/* Token bucket: `size` tokens, full again after `refill_ms`; `burst` more once at the start. size 0: no limit. */
struct vm_rate_bucket {
    uint64_t size, burst, refill_ms;
};

struct vm_rate_limit {
    struct vm_rate_bucket bandwidth; /* bytes */
    struct vm_rate_bucket ops;
};

enum vm_io_engine { VM_IO_ANY, VM_IO_SYNC, VM_IO_ASYNC };

struct vm_disk {
    char *id, *path;
    char *format;     /* of the image; NULL: as block_guess_format() says, raw in doubt */
    char *backing[VM_MAX_BACKING + 1]; /* NULL-terminated: the chain, nearest first; none: as the images say */
    char *key_path;   /* file with the key of an encrypted image; NULL: none */
    bool read_only;
    bool direct;      /* O_DIRECT */
    bool writeback;   /* guest flushes reach the disk; without it they are acknowledged at once (cache_type Unsafe) */
    bool writethrough; /* every write reaches the disk before it is acknowledged */
    bool keep_discarded; /* the guest cannot discard */
    bool root;        /* root device: adds root= to the command line when it has none */
    char *partuuid;   /* of the root device, NULL for none */
    unsigned queues;  /* 0: one a vCPU */
    enum vm_io_engine io_engine; /* ANY: io_uring where the host allows it; ASYNC: io_uring or an error */
    struct vm_rate_limit limit;
    char *throttle; /* name of a group that it shares a limit with; NULL: none */
    struct throttle_share share;
};

/* A limit that disks share. */
struct vm_throttle {
    char *name;
    struct throttle_limits limits;
};

enum vm_net_backend { VM_NET_USER, VM_NET_TAP };

struct vm_net {
    char *id;
    enum vm_net_backend backend;
    char *tap;        /* interface name or "fd:N", an open queue; VM_NET_TAP only */
    char *socket;     /* VM_NET_USER: "fd:N", connected to a passt, or listening for one; NULL: start one */
    char *forward;    /* VM_NET_USER: TCP ports of the host that lead into the guest, "9080:8080,..." */
    bool has_mac;     /* otherwise one is made from the VM's and the interface's id */
    uint8_t mac[6];
    uint16_t mtu;     /* that the guest is told; 0: none */
    unsigned queues;  /* 0: one pair a vCPU (tap), one pair (user) */
    struct vm_rate_limit rx_limit, tx_limit;
};

struct vm_vsock {
    bool present;
    uint32_t cid;
    char *uds_path;
};

struct vm_balloon {
    bool present;
    uint64_t target_mib;
    bool deflate_on_oom;
    unsigned stats_interval_s; /* 0: no statistics */
    bool free_page_reporting, free_page_hinting;
};

struct vm_entropy {
    bool present;
    struct vm_rate_limit limit;
};

enum vm_console_mode { VM_CONSOLE_STDIO, VM_CONSOLE_PTY, VM_CONSOLE_FILE, VM_CONSOLE_SOCKET, VM_CONSOLE_NONE };

struct vm_console {
    enum vm_console_mode mode;
    char *path;     /* of the file or the listening socket; NULL: none */
    char *log_path; /* VM_CONSOLE_SOCKET: file that keeps what the guest wrote last; NULL: none */
};

struct vm_config {
    char *id;
    char *kernel, *initrd, *cmdline;
    unsigned cpus;
    uint64_t memory_bytes;
    bool hugepages;
    bool track_dirty_pages;
    char *cpu_model;
    char *engine, *engine_options;
    char *kvm_device; /* a path or fd:N; NULL: /dev/kvm */
    char *jit_opt; /* optimisations that the jit engine does without: "no-NAME,..." */
    unsigned disk_count, net_count, throttle_count;
    struct vm_disk disks[VM_MAX_DISKS];
    struct vm_throttle throttles[VM_MAX_THROTTLES];
    /* NULL-terminated: folders, besides an image's own, that backing and data files may lie in */
    char *allow_backing[VM_MAX_DISKS + 1];
    struct vm_net nets[VM_MAX_NETS];
    struct vm_vsock vsock;
    struct vm_balloon balloon;
    struct vm_entropy entropy;
    struct vm_console console;  /* COM1 */
    bool has_hvc;
    struct vm_console hvc;      /* a virtio console, hvc0 */
    bool sandbox;   /* confine the program: jail.h */
    bool no_reboot; /* a guest reboot ends the program instead */
    /* The program rather than the machine */
    char *api_sock, *config_file, *metrics_path, *log_path, *pid_path;
    enum log_level log_level;
};

/* Defaults: 1 vCPU, 128 MiB, model "host", engine "auto", console on stdio. NULL when memory is out. */
struct vm_config *vm_config_new(void);
void vm_config_free(struct vm_config *config);
/* Append a blank, defaulted entry with a copy of `id` (NULL: "drive0".., "net0".. by position); -ENOSPC when full. */
must_check int vm_config_add_disk(struct vm_config *config, const char *id, struct vm_disk **ret_disk, struct err *err);
must_check int vm_config_add_net(struct vm_config *config, const char *id, struct vm_net **ret_net, struct err *err);
/* Appends a group without limits; -EEXIST, -ENOSPC. */
must_check int vm_config_add_throttle(struct vm_config *config, const char *name, struct vm_throttle **ret_throttle, struct err *err);
/* Index of the group; -1: there is none. */
int vm_config_find_throttle(const struct vm_config *config, const char *name);
/* The part of vm_config_check() that is about groups and the disks in them. */
must_check int vm_config_check_throttles(const struct vm_config *config, struct err *err);
/* Replaces an owned string by a copy of `value` (NULL allowed). */
must_check int vm_config_set(char **field, const char *value, struct err *err);
/* Empties the list. */
void vm_disk_clear_backing(struct vm_disk *disk);
/* Empties one entry's owned strings; what API replacements of drives and interfaces use before they fill it anew. */
void vm_disk_clear(struct vm_disk *disk);
void vm_net_clear(struct vm_net *net);
/* 0, or the first thing that cannot work: no kernel, vCPU count, memory too small or beyond the host, files missing. */
must_check int vm_config_check(const struct vm_config *config, struct err *err);
