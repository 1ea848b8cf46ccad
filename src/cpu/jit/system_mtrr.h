/* Memory type range registers and PAT values: stored and checked, without effect on the translator's memory. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct jit_vcpu;

enum mtrr_result { MTRR_NOT_MINE, MTRR_DONE, MTRR_REFUSED };

bool mtrr_read(struct jit_vcpu *cpu, uint32_t index, uint64_t *ret_value);
enum mtrr_result mtrr_write(struct jit_vcpu *cpu, uint32_t index, uint64_t value);
/* Whether all eight entries of a PAT value are memory types. */
bool mtrr_pat_valid(uint64_t value);
