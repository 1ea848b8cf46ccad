/* Self-timing kernels: fixed rounds of work, timed inside the guest, each round with the same checksum on every machine. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kernel {
    const char *name;
    const char *unit;        /* what ns_per_unit counts */
    double units;            /* of one round */
    uint64_t (*round)(void); /* one round of work; its checksum is the same each time */
    void (*setup)(void);     /* or NULL */
    bool (*usable)(void);    /* whether this CPU has the instructions; NULL: all have */
};

/* A small pseudo-random generator, so that inputs are the same everywhere. */
struct random {
    uint64_t state;
};

uint64_t random_next(struct random *r);

/* One step of a running checksum. */
uint64_t checksum_add(uint64_t sum, uint64_t value);

/* The command line of a program of kernels: [--ms N | --rounds N] [--list] [NAME...]. Runs the kernels of these names (all,
 * if there are none) for about N milliseconds or exactly N rounds each, and prints a line a kernel:
 * "BENCH name ns_per_unit mean checksum rounds unit" (ns_per_unit: median of the rounds), or "BENCH name skip". Ends with a
 * message when a checksum changes. Returns the exit status. */
int harness_main(const struct kernel *kernels, size_t count, char **argv);

/* Ends the program with a message. */
__attribute__((noreturn, format(printf, 1, 2))) void harness_fail(const char *format, ...);
