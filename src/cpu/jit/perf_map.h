/* Names of translated code for Linux's perf: a line for each block in /tmp/perf-PID.map, which perf report reads. The option
 * perf-map=on asks for it. A block is named by the guest address it was first made at, pages by host tools: `guest_ffffffff81000000`.
 * Names of code that was dropped stay. */
#pragma once

#include <stddef.h>
#include <stdint.h>

void perf_map_open(void);
void perf_map_add(const uint8_t *code, size_t bytes, uint64_t rip);
