/* tsc: prints the frequency of the time stamp counter in kHz. */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

int main(void)
{
    double start = now_ms(), now = start;
    unsigned long long first = __rdtsc();
    while (now < start + 300)
        now = now_ms();
    printf("%.0f\n", (double)(__rdtsc() - first) / (now - start));
    return 0;
}
