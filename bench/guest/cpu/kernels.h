/* The CPU kernels, by file. Inputs are made in `setup` from fixed seeds; results are exact on every x86-64 CPU. */
#pragma once

#include "../harness.h"

#define KERNEL_COUNT(array) (sizeof(array) / sizeof *(array))

/* Keeps the compiler from seeing through a value, or from turning a loop into another. */
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))

extern const struct kernel kernels_integer[], kernels_control[], kernels_memory[], kernels_string[], kernels_float[], kernels_vector[];
extern const size_t kernels_integer_count, kernels_control_count, kernels_memory_count, kernels_string_count, kernels_float_count,
    kernels_vector_count;
