/* A stand-in for a guest: a process that carries frames between an attachment's fd and a tap in another network namespace. */
#pragma once

#include <sys/types.h>
#include "control/network.h"

/* Starts it with interface eth0 in the namespace at path `netns`; it lives on when the driver ends. */
must_check int guest_start(const struct network_attachment *attachment, const char *netns, pid_t *ret_pid, struct err *err);
