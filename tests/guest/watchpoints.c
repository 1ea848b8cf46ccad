/* Debug registers at work: data and instruction breakpoints. */
#include "lib/guest.h"

static unsigned breakpoints;

static bool count_breakpoint(struct trap_frame *frame)
{
    breakpoints++;
    frame->rflags |= 1ul << 16; /* RF */
    return true;
}

static volatile uint64_t watched;

static void test_watchpoints(void)
{
    trap_handlers[DB] = count_breakpoint;
    write_dr6(0xffff0ff0);
    write_dr0((uint64_t)&watched);
    write_dr7(0x400 | 2 | 1ul << 16 | 2ul << 18); /* writes of 8 bytes */
    watched = 1;
    check_equal(breakpoints, 1, "data breakpoint by a write");
    check(read_dr6() & 1, "DR6 names it: 0x%lx", read_dr6());
    (void)watched;
    check_equal(breakpoints, 1, "no breakpoint by a read");
    write_dr7(0x400);
    trap_handlers[DB] = NULL;
    write_dr6(0xffff0ff0);
}

void guest_main(void)
{
    test_watchpoints();
}
