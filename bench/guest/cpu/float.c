/* Floating point: scalar doubles, planets, x87. Compiled without contraction, so results are the same everywhere. */
#include <math.h>
#include <string.h>

#include "kernels.h"

static uint64_t bits(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static uint64_t scalar_round(void)
{
    double sum = 0, x = 0.5;
    for (int i = 0; i < 500000; i++) {
        x = 3.7 * x * (1 - x);
        sum += sqrt(x) / (1 + x) - x * x;
    }
    return bits(sum);
}

enum { MATRIX = 128 };
static double matrix_a[MATRIX][MATRIX], matrix_b[MATRIX][MATRIX];

static void matrix_setup(void)
{
    struct random r = {47};
    for (int i = 0; i < MATRIX; i++)
        for (int j = 0; j < MATRIX; j++) {
            matrix_a[i][j] = (double)(random_next(&r) & 0xffff) / 3;
            matrix_b[i][j] = (double)(random_next(&r) & 0xffff) / 7;
        }
}

static uint64_t matrix_round(void)
{
    double sum = 0;
    for (int i = 0; i < MATRIX; i++)
        for (int j = 0; j < MATRIX; j++) {
            double s = 0;
            for (int k = 0; k < MATRIX; k++)
                s += matrix_a[i][k] * matrix_b[k][j];
            sum += s;
        }
    return bits(sum);
}

struct body {
    double x[3], v[3], mass;
};

static void advance(struct body *bodies, int count, double dt)
{
    for (int i = 0; i < count; i++)
        for (int j = i + 1; j < count; j++) {
            struct body *a = &bodies[i], *b = &bodies[j];
            double d[3], square = 0;
            for (int k = 0; k < 3; k++) {
                d[k] = a->x[k] - b->x[k];
                square += d[k] * d[k];
            }
            double force = dt / (square * sqrt(square));
            for (int k = 0; k < 3; k++) {
                a->v[k] -= d[k] * b->mass * force;
                b->v[k] += d[k] * a->mass * force;
            }
        }
    for (int i = 0; i < count; i++)
        for (int k = 0; k < 3; k++)
            bodies[i].x[k] += dt * bodies[i].v[k];
}

static uint64_t bodies_round(void)
{
    struct body bodies[5] = {{{0, 0, 0}, {0, 0, 0}, 40}, {{5, -1, 0}, {0.6, 2.8, 0}, 0.04}, {{8, 4, -0.4}, {-1, 1.8, 0.01}, 0.01},
                             {{13, -15, -0.2}, {1, 0.9, -0.01}, 0.002}, {{15, -26, 0.2}, {1, 0.6, -0.03}, 0.002}};
    for (int i = 0; i < 50000; i++)
        advance(bodies, 5, 0.001);
    return bits(bodies[1].x[0] + bodies[4].v[1]);
}

static uint64_t x87_round(void)
{
    long double x = 0.3L, sum = 0;
    for (int i = 0; i < 400000; i++) {
        x = 3.9L * x * (1 - x);
        sum += sqrtl(x) + 1 / (x + 2);
    }
    return (uint64_t)(sum * 1e9L);
}

static uint64_t convert_round(void)
{
    struct random r = {53};
    uint64_t sum = 0;
    for (int i = 0; i < 700000; i++) {
        int64_t n = (int64_t)(random_next(&r) >> 20);
        double x = (double)n * 0.125;
        float f = (float)x;
        sum += (uint64_t)(int64_t)x + (f > 1e9f ? (uint64_t)(int64_t)f : 1);
    }
    return sum;
}

const struct kernel kernels_float[] = {
    {.name = "float-scalar", .unit = "step", .units = 5e5, .round = scalar_round},
    {.name = "matmul-double", .unit = "multiply-add", .units = MATRIX * MATRIX * MATRIX, .round = matrix_round, .setup = matrix_setup},
    {.name = "n-body", .unit = "step", .units = 5e4, .round = bodies_round},
    {.name = "x87", .unit = "step", .units = 4e5, .round = x87_round},
    {.name = "float-convert", .unit = "step", .units = 7e5, .round = convert_round},
};
const size_t kernels_float_count = KERNEL_COUNT(kernels_float);
