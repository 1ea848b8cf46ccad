/* MTRRs: eight variable ranges, the fixed ranges, the default type. Source: Intel SDM 3A 12.11, 12.12. */
#include "cpu/jit/system_mtrr.h"

#include <stddef.h>

#include "cpu/jit/vcpu.h"

#define MTRR_VAR_FIRST 0x200u
#define MTRR_VAR_COUNT 16u /* base and mask of eight ranges */
#define MTRR_CAP UINT64_C(0x508) /* eight variable ranges, fixed ranges, write-combining */
#define MTRR_TYPES 0x73u /* UC, WC, WT, WP, WB */
#define PAT_TYPES 0xf3u  /* and UC- */

static bool type_in(unsigned types, uint64_t type)
{
    return type < 8 && (types >> type & 1);
}

/* Index into mtrr_fix, or -1. */
static int fixed_index(uint32_t index)
{
    if (index == MSR_MTRR_FIX_64K)
        return 0;
    if (index == 0x258 || index == 0x259)
        return (int)(index - 0x258) + 1;
    if (index >= 0x268 && index <= 0x26f)
        return (int)(index - 0x268) + 3;
    return -1;
}

static uint64_t *mtrr_slot(struct jit_vcpu *cpu, uint32_t index)
{
    int fixed = fixed_index(index);
    if (fixed >= 0)
        return &cpu->mtrr_fix[fixed];
    if (index >= MTRR_VAR_FIRST && index < MTRR_VAR_FIRST + MTRR_VAR_COUNT)
        return &cpu->mtrr_var[index - MTRR_VAR_FIRST];
    return index == MSR_MTRR_DEF_TYPE ? &cpu->mtrr_def_type : NULL;
}

static bool all_types_valid(unsigned types, uint64_t value)
{
    for (unsigned i = 0; i < 8; i++)
        if (!type_in(types, value >> (8 * i) & 0xff))
            return false;
    return true;
}

bool mtrr_pat_valid(uint64_t value)
{
    return all_types_valid(PAT_TYPES, value);
}

static bool mtrr_accepts(const struct jit_vcpu *cpu, uint32_t index, uint64_t value)
{
    if (fixed_index(index) >= 0)
        return all_types_valid(MTRR_TYPES, value);
    if (index == MSR_MTRR_DEF_TYPE)
        return type_in(MTRR_TYPES, value & 0xff) && !(value & ~UINT64_C(0xcff));
    if (value >> cpu->phys_bits)
        return false;
    bool is_mask = index & 1;
    return is_mask ? !(value & 0x7ff) : type_in(MTRR_TYPES, value & 0xff) && !(value & 0xf00);
}

bool mtrr_read(struct jit_vcpu *cpu, uint32_t index, uint64_t *ret_value)
{
    if (index == MSR_MTRR_CAP) {
        *ret_value = MTRR_CAP;
        return true;
    }
    const uint64_t *slot = mtrr_slot(cpu, index);
    if (slot)
        *ret_value = *slot;
    return slot != NULL;
}

enum mtrr_result mtrr_write(struct jit_vcpu *cpu, uint32_t index, uint64_t value)
{
    uint64_t *slot = mtrr_slot(cpu, index);
    if (!slot)
        return MTRR_NOT_MINE;
    if (!mtrr_accepts(cpu, index, value))
        return MTRR_REFUSED;
    *slot = value;
    return MTRR_DONE;
}
