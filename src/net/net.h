/* Packet backends: where a guest's network frames come from and go to.
 *
 * Every frame travels with a 12-byte virtio_net_hdr (VIRTIO 1.2 §5.1.6, num_buffers included) in front; a backend without
 * offloads strips and makes it. Threads: open and close anywhere; the rest in one thread at a time. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include "base/err.h"

struct net_backend;

#define NET_HEADER_SIZE 12u
#define NET_FRAME_MAX (65535u + 18u + NET_HEADER_SIZE) /* the largest with its header */
#define NET_MAX_QUEUES 16

/* Offloads towards the guest; numbers as in TUNSETOFFLOAD. */
#define NET_OFFLOAD_CSUM 1u
#define NET_OFFLOAD_TSO4 2u
#define NET_OFFLOAD_TSO6 4u
#define NET_OFFLOAD_ECN 8u
#define NET_OFFLOAD_UFO 16u
#define NET_OFFLOAD_USO4 32u
#define NET_OFFLOAD_USO6 64u

struct net_options {
    const char *driver; /* "tap", "user" or "none" */
    const char *name;   /* tap: interface name */
    int fd;             /* tap, user: an open queue or socket (connected or listening) instead; -1: none. Taken over on success. */
    unsigned queues;    /* tap: 1..NET_MAX_QUEUES, fewer when the interface has no multi_queue; 0: 1 */
    const char *forward; /* user: TCP ports of the host that lead into the guest, "9080:8080,..."; NULL: none */
};

struct net_class {
    const char *name;
    int (*open)(const struct net_options *options, struct net_backend **ret_backend, struct err *err);
    void (*close)(struct net_backend *backend);
    /* One frame into iov: its length with header, -EAGAIN when there is none, -EMSGSIZE when it was too long and is
     * dropped, -EPIPE when the backend is gone (see reopen), other -errno. */
    ssize_t (*receive)(struct net_backend *backend, unsigned queue, const struct iovec *iov, unsigned count);
    /* One frame from iov (header first): 0, -EAGAIN when full (wait for EPOLLOUT), other -errno when it was dropped. */
    int (*send)(struct net_backend *backend, unsigned queue, const struct iovec *iov, unsigned count);
    /* The fd of `queue` is writable again: flush what the backend holds back. NULL when it never does. */
    void (*writable)(struct net_backend *backend, unsigned queue);
    /* After -EPIPE: starts the backend again; all fds are new then, and the old ones closed. What was on its way is lost.
     * -EAGAIN when it is for someone else to start and is not there yet; NULL or -ENOTSUP when there is no way back. */
    int (*reopen)(struct net_backend *backend, struct err *err);
    /* Which offloads frames for the guest may use from now on. May be NULL. */
    int (*set_offloads)(struct net_backend *backend, unsigned offloads);
};

struct net_backend {
    const struct net_class *class;
    unsigned queues;
    int fd[NET_MAX_QUEUES]; /* for polling; -1: never ready */
    unsigned offloads;      /* NET_OFFLOAD_* it can do, both ways */
    bool backlog;           /* part of a sent frame is held back: call writable() when the fd is */
};

extern const struct net_class net_tap, net_user, net_none;
/* NULL-terminated. */
extern const struct net_class *const net_classes[];

must_check int net_open(const struct net_options *options, struct net_backend **ret_backend, struct err *err);
/* NULL is fine. */
void net_close(struct net_backend *backend);
