/* The agent in a guest. Three ways to run: as init of a microVM, as a service of a machine that has its own init, and on a
 * socket for tests. One thread, one loop; everything here belongs to it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "agent/protocol.h"
#include "base/loop.h"

enum agent_mode { AGENT_INIT, AGENT_SERVICE, AGENT_TEST };

/* Where the time of a start went, since the kernel's (CLOCK_BOOTTIME): said by `ping`. */
enum agent_moment { MOMENT_AGENT, MOMENT_MODULES, MOMENT_ROOT, MOMENT_LISTENING, MOMENT_START, MOMENT_MAIN, MOMENTS };

struct primary;
struct session;

struct agent {
    enum agent_mode mode;
    struct loop *loop;
    int listen_fd;
    int console_fd; /* the main process's output goes there: hvc0; -1 for none */
    struct session *sessions;
    unsigned session_count;
    struct primary *primary;
    struct loop_source *power_timer;
    bool is_going_down;
    uint64_t moments_us[MOMENTS];
};

void agent_moment(struct agent *agent, enum agent_moment moment);
