/* Everything that routes work on, as polderd has opened it. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

struct store;
struct operations;
struct events;
struct metrics;
struct instances;
struct networks;
struct volumes;
struct image_store;

struct platform {
    const char *state_dir, *run_dir, *guest_dir, *socket_path;
    struct store *store;
    struct image_store *images;
    struct volumes *volumes;
    struct networks *networks;
    struct instances *instances;
    struct operations *operations;
    struct events *events;
    struct metrics *metrics;
    time_t started_at;
    atomic_bool stopping; /* long polls and streams come to their end */
};

static inline bool platform_stopping(const struct platform *platform)
{
    return atomic_load(&platform->stopping);
}
