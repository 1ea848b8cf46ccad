/* Page tables: every level and size, permissions, accessed and dirty bits, reserved bits, errors and CR2. */
#include "lib/guest.h"

#define CR4_PGE (1ul << 7)
#define VA 0x200000000000ul /* PML4 slot 64: nothing else lives there */
#define ERR_P 1ul
#define ERR_W 2ul
#define ERR_U 4ul
#define ERR_RSVD 8ul
#define ERR_I 16ul
#define CR0_WP (1ul << 16)

static uint64_t size_of_level(unsigned level)
{
    return PAGE << (9 * (level - 1));
}

static unsigned top_level(void)
{
    return cpuid(0x80000001, 0).edx >> 26 & 1 ? 3 : 2;
}

static volatile uint64_t *at(uint64_t va)
{
    return (volatile uint64_t *)va;
}

static void check_fault(struct trap trap, uint64_t error, uint64_t cr2, const char *what)
{
    check_trap(trap, PF, error, what);
    check_equal(trap.cr2, cr2, what);
}

/* A 1 GiB page must start at a multiple of its size: all tests use physical page 0 of such a run plus `offset`. */
static uint64_t target;

static void map_at(uint64_t va, unsigned level, uint64_t flags)
{
    map_page(va, target & ~(size_of_level(level) - 1), level, flags);
}

static uint64_t address_in(unsigned level)
{
    return VA + (target & (size_of_level(level) - 1));
}

static void clear_slot(void)
{
    *page_entry(VA, 4) = 0;
    write_cr3(read_cr3());
}

static void test_access(unsigned level)
{
    clear_slot();
    uint64_t va = address_in(level), seen = 0;
    map_at(VA, level, P_PRESENT | P_WRITE);
    *(uint64_t *)target = 0x1234567890abcdef;
    check_no_trap(TRAP(seen = *at(va)), "read");
    check_equal(seen, 0x1234567890abcdef, "value read");
    check_equal(*page_entry(VA, level) & (P_ACCESSED | P_DIRTY), P_ACCESSED, "A and D after a read");
    for (unsigned up = level + 1; up <= 4; up++)
        check(*page_entry(VA, up) & P_ACCESSED, "A in level %u", up);
    check_no_trap(TRAP(*at(va) = 42), "write");
    check_equal(*(uint64_t *)target, 42, "value written");
    check_equal(*page_entry(VA, level) & (P_ACCESSED | P_DIRTY), P_ACCESSED | P_DIRTY, "A and D after a write");
}

static void test_not_present(unsigned level)
{
    for (unsigned hole = level; hole <= 4; hole++) {
        clear_slot();
        map_at(VA, level, P_PRESENT | P_WRITE);
        *page_entry(VA, hole) &= ~P_PRESENT;
        uint64_t va = address_in(level) + 3;
        invlpg(va);
        check_fault(TRAP((void)*at(va)), 0, va, "read, not present");
        check_fault(TRAP(*at(va) = 1), ERR_W, va, "write, not present");
    }
}

/* INVLPG of any byte of a page is for all of it. */
static void test_invalidation(unsigned level)
{
    clear_slot();
    map_at(VA, level, P_PRESENT | P_WRITE);
    uint64_t va = level == 3 ? VA + (32 << 20) : address_in(level);
    check_no_trap(TRAP(*at(va) = *at(va)), "read and write");
    *page_entry(VA, level) &= ~P_WRITE;
    invlpg(VA);
    check_fault(TRAP(*at(va) = *at(va)), ERR_P | ERR_W, va, "write after INVLPG of the page's start");
    *page_entry(VA, level) &= ~P_PRESENT;
    invlpg(VA + size_of_level(level) - 1);
    check_fault(TRAP((void)*at(va)), 0, va, "read after INVLPG of the page's end");
}

static void test_read_only(unsigned level)
{
    for (unsigned up = level; up <= 4; up++) {
        clear_slot();
        map_at(VA, level, P_PRESENT | P_WRITE);
        *page_entry(VA, up) &= ~P_WRITE;
        uint64_t va = address_in(level);
        invlpg(va);
        check_no_trap(TRAP((void)*at(va)), "read of a read-only page");
        check_fault(TRAP(*at(va) = 1), ERR_P | ERR_W, va, "write to a read-only page");
        check(!(*page_entry(VA, level) & P_DIRTY), "D stays clear when the write faults");
        check_fault(TRAP(__asm__ volatile("lock cmpxchg %0, (%1)" : : "r"(0ul), "r"(va), "a"(1ul) : "memory")),
                    ERR_P | ERR_W, va, "a failing cmpxchg is a write");
        write_cr0(read_cr0() & ~CR0_WP);
        check_no_trap(TRAP(*at(va) = 2), "write with CR0.WP clear");
        write_cr0(read_cr0() | CR0_WP);
        check(*page_entry(VA, level) & P_DIRTY, "D is set by a write without WP");
        check_fault(TRAP(*at(va) = 1), ERR_P | ERR_W, va, "write with WP set again");
    }
}

static void user_read(void *arg)
{
    (void)*(volatile uint64_t *)arg;
    LEAVE_USER();
}

static void user_write(void *arg)
{
    *(volatile uint64_t *)arg = 7;
    LEAVE_USER();
}

static void user_jump(void *arg)
{
    __asm__ volatile("call *%0" : : "r"(arg) : "memory");
    LEAVE_USER();
}

static void test_user(unsigned level)
{
    uint64_t va = address_in(level);
    void *arg = (void *)va;
    for (unsigned up = level; up <= 4; up++) {
        clear_slot();
        map_at(VA, level, P_PRESENT | P_WRITE | P_USER);
        check_trap(run_user(user_read, arg), 0x80, 0, "user read");
        check_trap(run_user(user_write, arg), 0x80, 0, "user write");
        *page_entry(VA, up) &= ~P_USER;
        invlpg(va);
        check_fault(run_user(user_read, arg), ERR_P | ERR_U, va, "user read of a supervisor page");
        check_fault(run_user(user_write, arg), ERR_P | ERR_U | ERR_W, va, "user write to a supervisor page");
        *page_entry(VA, up) = (*page_entry(VA, up) | P_USER) & ~P_WRITE;
        invlpg(va);
        check_trap(run_user(user_read, arg), 0x80, 0, "user read of a read-only page");
        check_fault(run_user(user_write, arg), ERR_P | ERR_U | ERR_W, va, "user write to a read-only page");
    }
    clear_slot();
    check_fault(run_user(user_read, arg), ERR_U, va, "user read, not present");
    check_fault(run_user(user_write, arg), ERR_U | ERR_W, va, "user write, not present");
}

static void call_it(void *arg)
{
    ((void (*)(void))arg)();
}

static void test_no_execute(unsigned level)
{
    uint64_t va = address_in(level);
    *(uint8_t *)target = 0xc3; /* ret */
    for (unsigned up = level; up <= 4; up++) {
        clear_slot();
        map_at(VA, level, P_PRESENT | P_WRITE | P_USER);
        check_no_trap(catch_trap(call_it, (void *)va), "fetch");
        *page_entry(VA, up) |= P_NX;
        invlpg(va);
        check_no_trap(TRAP((void)*at(va)), "read of a no-execute page");
        check_fault(catch_trap(call_it, (void *)va), ERR_P | ERR_I, va, "fetch from a no-execute page");
        check_fault(run_user(user_jump, (void *)va), ERR_P | ERR_U | ERR_I, va, "user fetch from a no-execute page");
        wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x800ul);
        check_fault(TRAP((void)*at(va)), ERR_P | ERR_RSVD, va, "NX is a reserved bit without EFER.NXE");
        wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
    }
    clear_slot();
    check_fault(catch_trap(call_it, (void *)va), ERR_I, va, "fetch, not present");
}

static void test_reserved(unsigned level)
{
    uint64_t va = address_in(level);
    for (unsigned up = level; up <= 4; up++) {
        clear_slot();
        map_at(VA, level, P_PRESENT | P_WRITE);
        *page_entry(VA, up) |= 1ul << 51;
        invlpg(va);
        check_fault(TRAP((void)*at(va)), ERR_P | ERR_RSVD, va, "reserved address bit");
        check_fault(TRAP(*at(va) = 1), ERR_P | ERR_RSVD | ERR_W, va, "reserved address bit, write");
    }
    if (level > 1) {
        clear_slot();
        map_at(VA, level, P_PRESENT | P_WRITE | 1ul << 13);
        check_fault(TRAP((void)*at(va)), ERR_P | ERR_RSVD, va, "low address bit of a large page");
    }
    clear_slot();
    map_at(VA, 1, P_PRESENT | P_WRITE);
    *page_entry(VA, 4) |= P_LARGE;
    write_cr3(read_cr3());
    check_fault(TRAP((void)*at(VA)), ERR_P | ERR_RSVD, VA, "PS in a PML4 entry");
}

static void test_crossing(void)
{
    clear_slot();
    uint64_t pages = (uint64_t)alloc_pages(2), edge = VA + PAGE;
    map_page(VA, pages, 1, P_PRESENT | P_WRITE);
    check_fault(TRAP((void)*at(edge - 3)), 0, edge, "read into a missing page");
    *(uint64_t *)(pages + PAGE - 8) = 0x1111111111111111;
    check_fault(TRAP(*at(edge - 3) = ~0ul), ERR_W, edge, "write into a missing page");
    check_equal(*(uint64_t *)(pages + PAGE - 8), 0x1111111111111111, "nothing is written of a faulting store");
    map_page(edge, pages + PAGE, 1, P_PRESENT);
    check_fault(TRAP(*at(edge - 3) = ~0ul), ERR_P | ERR_W, edge, "write into a read-only page");
    check_equal(*(uint64_t *)(pages + PAGE - 8), 0x1111111111111111, "nothing is written of a faulting store");
    map_page(edge, pages + PAGE, 1, P_PRESENT | P_WRITE);
    check_no_trap(TRAP(*at(edge - 3) = 0x0807060504030201), "write over two pages");
    check_equal(*(uint32_t *)(pages + PAGE), 0x07060504, "second part of a crossing write");
    check_equal(*at(edge - 3), 0x0807060504030201, "crossing read");
    /* The two pages need not be neighbours. */
    uint64_t other = (uint64_t)alloc_pages(1);
    map_page(edge, other, 1, P_PRESENT | P_WRITE);
    *at(edge - 4) = 0xaabbccdd11223344;
    check_equal(*(uint32_t *)other, 0xaabbccdd, "second part in another page");
}

static void test_aliases(void)
{
    clear_slot();
    uint64_t page = (uint64_t)alloc_pages(2);
    map_page(VA, page, 1, P_PRESENT | P_WRITE);
    map_page(VA + 0x5000, page, 1, P_PRESENT | P_WRITE);
    *at(VA) = 1;
    check_equal(*at(VA + 0x5000), 1, "alias");
    *page_entry(VA, 1) = (page + PAGE) | P_PRESENT | P_WRITE;
    invlpg(VA);
    *at(VA) = 2;
    check_equal(*at(VA + 0x5000), 1, "alias after the other moved");
    check_equal(*(uint64_t *)(page + PAGE), 2, "moved page");
}

#define STEP (16ul << 20)
#define TURNS 16u

static void map_turn(unsigned i, uint64_t pages, uint64_t flags)
{
    *page_entry(VA + i * STEP, 1) = (pages + i * PAGE) | P_PRESENT | flags;
}

/* Pages that a TLB indexed by low address bits keeps in one place, used by turns. */
static void test_turns(void)
{
    clear_slot();
    uint64_t old = (uint64_t)alloc_pages(TURNS), new = (uint64_t)alloc_pages(TURNS);
    for (unsigned i = 0; i < TURNS; i++) {
        map_page(VA + i * STEP, old + i * PAGE, 1, P_PRESENT | P_WRITE);
        *at(new + i * PAGE) = 100 + i;
    }
    for (unsigned round = 0; round < 3; round++)
        for (unsigned i = 0; i < TURNS; i++)
            *at(VA + i * STEP) += i;
    for (unsigned i = 0; i < TURNS; i++) {
        check_equal(*at(old + i * PAGE), 3ul * i, "written by turns");
        map_turn(i, new, 0);
        invlpg(VA + i * STEP);
        check_equal(*at(VA + i * STEP), 100 + i, "moved page among those that take turns");
        check_fault(TRAP(*at(VA + i * STEP) = 1), ERR_P | ERR_W, VA + i * STEP, "write to it, now read-only");
        check_equal(*at(VA + (TURNS - 1) * STEP), i + 1 < TURNS ? 3ul * (TURNS - 1) : 100 + i, "the last of them");
    }
    for (unsigned i = 0; i < TURNS; i++)
        map_turn(i, old, P_WRITE);
    write_cr3(read_cr3());
    for (unsigned i = 0; i < TURNS; i++)
        check_equal(*at(VA + i * STEP), 3ul * i, "moved back, after a CR3 load");
}

#define MANY 20000u

static unsigned count_wrong(unsigned flip)
{
    unsigned wrong = 0;
    for (unsigned i = 0; i < MANY; i++)
        wrong += *at(VA + i * PAGE) != ((i ^ flip) & 1);
    return wrong;
}

/* More pages than a TLB holds. */
static void test_many(void)
{
    clear_slot();
    uint64_t pages = (uint64_t)alloc_pages(2);
    *at(pages) = 0;
    *at(pages + PAGE) = 1;
    for (unsigned i = 0; i < MANY; i++)
        map_page(VA + i * PAGE, pages + (i & 1) * PAGE, 1, P_PRESENT);
    check_equal(count_wrong(0), 0, "pages read wrong");
    check_equal(count_wrong(0), 0, "pages read wrong again");
    for (unsigned i = 0; i < MANY; i++)
        *page_entry(VA + i * PAGE, 1) ^= pages ^ (pages + PAGE);
    write_cr3(read_cr3());
    check_equal(count_wrong(1), 0, "pages read wrong after all moved");
}

static void move_byte(uint64_t to, uint64_t from)
{
    *(volatile uint8_t *)target = 1;
    __asm__ volatile("movsb" : "+D"(to), "+S"(from) : : "memory");
}

/* Around 2^63, where empty entries of a TLB may lie: no access starts or ends there, by whatever code. */
static void test_middle(uint64_t address)
{
    write_cr4(read_cr4() ^ CR4_PGE); /* empties it */
    write_cr4(read_cr4() ^ CR4_PGE);
    check_trap(TRAP((void)*at(address)), GP, 0, "read at 2^63");
    check_trap(TRAP(__asm__ volatile("push %%rbp; mov %0, %%rbp; movq (%%rbp), %%mm0; pop %%rbp"
                                     : : "r"(address) : "rcx", "memory")), SS, 0, "read at 2^63 through rbp");
    check_trap(TRAP(__asm__ volatile("push %%rbp; mov %0, %%rbp; stc; mov (%%rbp), %%rax; adc %%rax, %%rax; pop %%rbp"
                                     : : "r"(address) : "rax", "memory", "cc")), SS, 0, "the same with live flags");
    check_trap(TRAP(__asm__ volatile("mov %0, %%rbp; leave" : : "r"(address) : "memory")), SS, 0, "leave at 2^63");
    struct trap from = TRAP(move_byte((uint64_t)target, address)), to = TRAP(move_byte(address, (uint64_t)target));
    check_trap(from, GP, 0, "movs from 2^63");
    check(from.frame.rsi == address && from.frame.rdi == target, "rsi and rdi of movs from 2^63");
    check_trap(to, GP, 0, "movs to 2^63");
    check(to.frame.rsi == target && to.frame.rdi == address, "rsi and rdi of movs to 2^63");
}

static void test_canonical(void)
{
    check_trap(TRAP((void)*at(0x0000800000000000)), GP, 0, "non-canonical read");
    check_trap(TRAP(*at(0x8000000000000000) = 1), GP, 0, "non-canonical write");
    check_trap(TRAP(__asm__ volatile("mov %%rbp, %%rcx; mov %0, %%rbp; mov (%%rbp), %%rax; mov %%rcx, %%rbp"
                                     : : "r"(1ul << 47) : "rax", "rcx", "memory")),
               SS, 0, "non-canonical through rbp");
    for (int i = -1; i <= 1; i++) /* ends below it, across it, begins at it */
        test_middle(0x8000000000000000 - 4 + (uint64_t)(4 * i));
    check_trap(catch_trap(call_it, (void *)0x0000800000000000), GP, 0, "non-canonical call");
    write_cr2(0x123456789abc);
    check_trap(TRAP((void)*at(0x0000800000000000)), GP, 0, "non-canonical read");
    check_equal(read_cr2(), 0x123456789abc, "CR2 after #GP");
}

/* What test_32_bit needs below 4 GiB; offsets as its code has them. */
static struct {
    uint32_t tables, cr3, cr4, efer; /* 0 */
    uint32_t back, back_selector;    /* 16 */
    uint32_t seen;                   /* 24 */
} turn;
static uint32_t directory[1024] __attribute__((aligned(4096))), tables[16][1024] __attribute__((aligned(4096)));

/* To 32-bit paging, one access, and back. */
static void read_in_32_bit_paging(void)
{
    __asm__ volatile("lea 3f(%%rip), %%rax; mov %%eax, 16(%%rdi)\n"
                     "mov %%cr3, %%rax; mov %%eax, 4(%%rdi); mov %%cr4, %%rax; mov %%eax, 8(%%rdi)\n"
                     "lea 1f(%%rip), %%rax; push %1; push %%rax; lretq\n"
                     ".code32\n"
                     "1: mov %%cr0, %%eax; btr $31, %%eax; mov %%eax, %%cr0\n"
                     "mov $0xc0000080, %%ecx; rdmsr; mov %%eax, 12(%%edi); btr $8, %%eax; wrmsr\n"
                     "mov (%%edi), %%eax; mov %%eax, %%cr3; mov %%cr4, %%eax; and $~0x30, %%eax; mov %%eax, %%cr4\n"
                     "mov %%cr0, %%eax; bts $31, %%eax; mov %%eax, %%cr0; jmp 2f\n"
                     "2: mov 12(%%edi), %%eax; mov %%eax, 24(%%edi)\n"
                     "mov %%cr0, %%eax; btr $31, %%eax; mov %%eax, %%cr0\n"
                     "mov 8(%%edi), %%eax; mov %%eax, %%cr4; mov 4(%%edi), %%eax; mov %%eax, %%cr3\n"
                     "mov $0xc0000080, %%ecx; xor %%edx, %%edx; mov 12(%%edi), %%eax; wrmsr\n"
                     "mov %%cr0, %%eax; bts $31, %%eax; mov %%eax, %%cr0; ljmp *16(%%edi)\n"
                     ".code64\n"
                     "3:\n"
                     : : "D"(&turn), "i"(SEL_KERNEL32) : "rax", "rcx", "rdx", "memory", "cc");
}

/* Without CR4.PSE, the bit for large pages means nothing in a directory, and PAT in a table. */
static void test_32_bit(void)
{
    for (unsigned i = 0; i < 16; i++) {
        directory[i] = (uint32_t)(uint64_t)tables[i] | P_PRESENT | P_WRITE | P_LARGE;
        for (unsigned k = 0; k < 1024; k++)
            tables[i][k] = (i << 10 | k) << 12 | P_PRESENT | P_WRITE | P_LARGE;
    }
    turn.tables = (uint32_t)(uint64_t)directory;
    turn.back_selector = SEL_KERNEL;
    disable_interrupts();
    read_in_32_bit_paging();
    check_equal(turn.seen, turn.efer, "read in 32-bit paging");
    check_equal(directory[0] & 0xfff, P_PRESENT | P_WRITE | P_LARGE | P_ACCESSED, "directory entry that was used");
}

void guest_main(void)
{
    target = (uint64_t)alloc_pages(1);
    for (unsigned level = 1; level <= top_level(); level++) {
        test_access(level);
        test_not_present(level);
        test_invalidation(level);
        test_read_only(level);
        test_user(level);
        test_no_execute(level);
        test_reserved(level);
    }
    test_crossing();
    test_aliases();
    test_turns();
    test_many();
    test_32_bit();
    test_canonical();
}
