#include "harness.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS_MIN = 3, ROUNDS_MAX = 4096 };

/* How long to run a kernel: so many rounds, or, if that is 0, about so many milliseconds. */
struct budget {
    double ms;
    size_t rounds;
};

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

void harness_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
    _Exit(1);
}

uint64_t random_next(struct random *r)
{
    uint64_t x = r->state ? r->state : 88172645463325252u;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return r->state = x;
}

uint64_t checksum_add(uint64_t sum, uint64_t value)
{
    return (sum ^ value) * 0x9e3779b97f4a7c15u + (sum >> 29);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool is_enough(const struct budget *budget, size_t rounds, double spent_ns)
{
    if (budget->rounds)
        return rounds == budget->rounds;
    return rounds == ROUNDS_MAX || (rounds >= ROUNDS_MIN && spent_ns >= budget->ms * 1e6);
}

/* The first round is not counted: it faults memory in and, under a translator, makes the code. */
static void run_kernel(const struct kernel *k, const struct budget *budget)
{
    static double times[ROUNDS_MAX];
    if (k->usable && !k->usable()) {
        printf("BENCH %s skip\n", k->name);
        return;
    }
    if (k->setup)
        k->setup();
    uint64_t sum = k->round();
    size_t rounds = 0;
    double begin = now_ns(), last = begin;
    while (!is_enough(budget, rounds, last - begin)) {
        if (k->round() != sum)
            harness_fail("BENCH %s wrong: a round gave another checksum than the first", k->name);
        double now = now_ns();
        times[rounds++] = now - last;
        last = now;
    }
    qsort(times, rounds, sizeof *times, compare_doubles);
    printf("BENCH %s %.4f %.4f %016llx %zu %s\n", k->name, times[rounds / 2] / k->units, (last - begin) / (double)rounds / k->units,
           (unsigned long long)sum, rounds, k->unit);
    fflush(stdout);
}

static bool is_wanted(const struct kernel *k, char **names)
{
    for (char **name = names; *name; name++)
        if (!strcmp(*name, k->name))
            return true;
    return !*names;
}

int harness_main(const struct kernel *kernels, size_t count, char **argv)
{
    struct budget budget = {.ms = 300};
    for (argv++; *argv && **argv == '-'; argv++) {
        if (!strcmp(*argv, "--ms") && argv[1]) {
            budget.ms = atof(*++argv);
        } else if (!strcmp(*argv, "--rounds") && argv[1]) {
            budget.rounds = (size_t)atoi(*++argv) % ROUNDS_MAX;
        } else if (!strcmp(*argv, "--list")) {
            for (size_t i = 0; i < count; i++)
                printf("%s\n", kernels[i].name);
            return 0;
        } else {
            printf("usage: [--ms N | --rounds N] [--list] [NAME...]\n");
            return 2;
        }
    }
    for (size_t i = 0; i < count; i++)
        if (is_wanted(&kernels[i], argv))
            run_kernel(&kernels[i], &budget);
    return 0;
}
