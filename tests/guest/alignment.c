/* Alignment check: #AC in ring 3 with CR0.AM and EFLAGS.AC, and nowhere else. */
#include "lib/guest.h"

#define FLAG_AC (1ul << 18)
#define CR0_AM (1ul << 18)

static uint64_t unaligned_storage[2];

static void user_unaligned(void *arg)
{
    volatile uint32_t *p = (volatile uint32_t *)((char *)arg + 1);
    *p = 1;
    LEAVE_USER();
}

static void test_alignment(void)
{
    void *arg = AS_USER(unaligned_storage);
    check_trap(run_user_flags(user_unaligned, arg, 2 | FLAG_AC, SEL_USER), 0x80, 0, "misaligned without CR0.AM");
    write_cr0(read_cr0() | CR0_AM);
    check_trap(run_user(user_unaligned, arg), 0x80, 0, "misaligned without AC");
    check_trap(run_user_flags(user_unaligned, arg, 2 | FLAG_AC, SEL_USER), AC, 0, "misaligned with AC");
    write_cr0(read_cr0() & ~CR0_AM);
}

void guest_main(void)
{
    test_alignment();
}
