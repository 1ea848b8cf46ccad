/* SMEP, SMAP, UMIP-free supervisor rules, global pages, PCID and INVPCID. */
#include "lib/guest.h"

#define VA 0x200000000000ul
#define CR4_PGE (1ul << 7)
#define CR4_PCIDE (1ul << 17)
#define CR4_SMEP (1ul << 20)
#define CR4_SMAP (1ul << 21)
#define CR3_NO_FLUSH (1ul << 63)
#define FLAG_AC (1ul << 18)
#define CR0_WP (1ul << 16)

static uint64_t page;

static volatile uint64_t *at(uint64_t va)
{
    return (volatile uint64_t *)va;
}

static void call_it(void *arg)
{
    ((void (*)(void))arg)();
}

static void test_smep(void)
{
    if (!(cpuid(7, 0).ebx & 1u << 7)) {
        skip("no SMEP");
        return;
    }
    *(uint8_t *)page = 0xc3;
    map_page(VA, page, 1, P_PRESENT | P_WRITE | P_USER);
    check_no_trap(catch_trap(call_it, (void *)VA), "supervisor fetch of a user page without SMEP");
    write_cr4(read_cr4() | CR4_SMEP);
    struct trap trap = catch_trap(call_it, (void *)VA);
    check_trap(trap, PF, 0x11, "supervisor fetch of a user page with SMEP");
    check_equal(trap.cr2, VA, "CR2");
    check_no_trap(TRAP((void)*at(VA)), "data access with SMEP");
    map_page(VA, page, 1, P_PRESENT | P_WRITE);
    check_no_trap(catch_trap(call_it, (void *)VA), "supervisor page with SMEP");
    write_cr4(read_cr4() & ~CR4_SMEP);
}

static void set_ac(bool on)
{
    if (on)
        __asm__ volatile("stac" ::: "memory");
    else
        __asm__ volatile("clac" ::: "memory");
}

static void user_read(void *arg)
{
    (void)*(volatile uint64_t *)arg;
    LEAVE_USER();
}

static void test_smap(void)
{
    if (!(cpuid(7, 0).ebx & 1u << 20)) {
        skip("no SMAP");
        return;
    }
    map_page(VA, page, 1, P_PRESENT | P_WRITE | P_USER);
    write_cr4(read_cr4() | CR4_SMAP);
    check_trap(TRAP((void)*at(VA)), PF, 1, "read of a user page with SMAP");
    check_trap(TRAP(*at(VA) = 1), PF, 3, "write to a user page with SMAP");
    set_ac(true);
    check_no_trap(TRAP((void)*at(VA)), "read after STAC");
    check_no_trap(TRAP(*at(VA) = 1), "write after STAC");
    set_ac(false);
    check_trap(TRAP((void)*at(VA)), PF, 1, "read after CLAC");
    check_trap(run_user(user_read, (void *)VA), 0x80, 0, "user mode is not concerned");
    map_page(VA, page, 1, P_PRESENT | P_USER);
    write_cr0(read_cr0() & ~CR0_WP);
    check_trap(TRAP(*at(VA) = 1), PF, 3, "SMAP holds with WP clear");
    write_cr0(read_cr0() | CR0_WP);
    write_cr4(read_cr4() & ~CR4_SMAP);
    check_no_trap(TRAP((void)*at(VA)), "read without SMAP");
}

/* Changes the mapping behind the TLB's back. */
static void set_entry(uint64_t va, uint64_t pa, uint64_t flags)
{
    *page_entry(va, 1) = pa | flags;
}

static void test_flushes(void)
{
    uint64_t a = (uint64_t)alloc_pages(2), b = a + PAGE, rw = P_PRESENT | P_WRITE;
    *(uint64_t *)a = 'a';
    *(uint64_t *)b = 'b';
    map_page(VA, a, 1, rw);
    check_equal(*at(VA), 'a', "before");
    set_entry(VA, b, rw);
    invlpg(VA + 123);
    check_equal(*at(VA), 'b', "after INVLPG of any address in the page");
    set_entry(VA, a, rw);
    write_cr3(read_cr3());
    check_equal(*at(VA), 'a', "after a load of CR3");
    write_cr4(read_cr4() | CR4_PGE);
    set_entry(VA, b, rw | P_GLOBAL);
    invlpg(VA);
    check_equal(*at(VA), 'b', "global page");
    set_entry(VA, a, rw | P_GLOBAL);
    write_cr4(read_cr4() & ~CR4_PGE);
    check_equal(*at(VA), 'a', "global page after PGE was cleared");
    write_cr4(read_cr4() | CR4_PGE);
    set_entry(VA, b, rw | P_GLOBAL);
    invlpg(VA);
    check_equal(*at(VA), 'b', "global page after INVLPG");
    /* Permission changes count as well. */
    set_entry(VA, b, P_PRESENT);
    invlpg(VA);
    check_trap(TRAP(*at(VA) = 1), PF, 3, "write after the page became read-only");
    set_entry(VA, b, rw);
    check_no_trap(TRAP(*at(VA) = 'B'), "more permission needs no flush after a fault");
}

static void invpcid(uint64_t type, uint64_t pcid, uint64_t address)
{
    struct {
        uint64_t pcid, address;
    } descriptor = {pcid, address};
    __asm__ volatile("invpcid %0, %1" : : "m"(descriptor), "r"(type) : "memory");
}

static void load_pcid(uint64_t root, uint64_t pcid, bool keep)
{
    write_cr3(root | pcid | (keep ? CR3_NO_FLUSH : 0));
}

/* Two address spaces with one PCID each; entries of the other must never show, whatever stays in the TLB. */
static void test_pcid(void)
{
    if (!(cpuid(1, 0).ecx & 1u << 17)) {
        skip("no PCID");
        return;
    }
    uint64_t root1 = read_cr3() & ~0xffful, root2 = (uint64_t)alloc_pages(1);
    memcpy((void *)root2, (void *)root1, PAGE);
    *(uint64_t *)(root2 + (VA >> 39 & 511) * 8) = 0;
    uint64_t a = (uint64_t)alloc_pages(2), b = a + PAGE, rw = P_PRESENT | P_WRITE;
    *(uint64_t *)a = 'a';
    *(uint64_t *)b = 'b';
    write_cr3(root1 | 1);
    check_trap(TRAP(write_cr4(read_cr4() | CR4_PCIDE)), GP, 0, "PCIDE with low bits in CR3");
    write_cr3(root1);
    write_cr4(read_cr4() | CR4_PCIDE);
    load_pcid(root1, 1, false);
    map_page(VA, a, 1, rw);
    check_equal(*at(VA), 'a', "first address space");
    load_pcid(root2, 2, false);
    map_page(VA, b, 1, rw);
    check_equal(*at(VA), 'b', "second address space");
    for (unsigned i = 0; i < 20; i++) {
        load_pcid(root1, 1, true);
        check_equal(*at(VA), 'a', "first again");
        load_pcid(root2, 2, true);
        check_equal(*at(VA), 'b', "second again");
    }
    check_equal(read_cr3(), root2 | 2, "CR3 without the no-flush bit");
    set_entry(VA, a, rw);
    load_pcid(root2, 2, false);
    check_equal(*at(VA), 'a', "a load without no-flush flushes its PCID");

    if (!(cpuid(7, 0).ebx & 1u << 10)) {
        skip("no INVPCID");
    } else {
        set_entry(VA, b, rw);
        invpcid(0, 2, VA);
        check_equal(*at(VA), 'b', "INVPCID of an address");
        set_entry(VA, a, rw);
        invpcid(1, 2, 0);
        check_equal(*at(VA), 'a', "INVPCID of a context");
        set_entry(VA, b, rw | P_GLOBAL);
        invpcid(2, 0, 0);
        check_equal(*at(VA), 'b', "INVPCID of all, global pages too");
        set_entry(VA, a, rw);
        invpcid(2, 0, 0);
        set_entry(VA, b, rw);
        invpcid(3, 0, 0);
        check_equal(*at(VA), 'b', "INVPCID of all but global pages");
        /* Another context's entry is dropped while it is away. */
        load_pcid(root1, 1, true);
        check_equal(*at(VA), 'a', "first");
        load_pcid(root2, 2, true);
        uint64_t *entry1 = (uint64_t *)root1;
        for (unsigned level = 4; level > 1; level--)
            entry1 = (uint64_t *)(entry1[VA >> (3 + 9 * level) & 511] & 0x000ffffffffff000ul);
        entry1[VA >> 12 & 511] = b | rw;
        invpcid(0, 1, VA);
        load_pcid(root1, 1, true);
        check_equal(*at(VA), 'b', "the other context after INVPCID");
        check_trap(TRAP(invpcid(4, 0, 0)), GP, 0, "INVPCID type 4");
        check_trap(TRAP(invpcid(0, 0x1000, VA)), GP, 0, "INVPCID with a PCID of 13 bits");
        check_trap(TRAP(invpcid(0, 1, 1ul << 47)), GP, 0, "INVPCID of a non-canonical address");
    }
    load_pcid(root1, 0, false);
    write_cr4(read_cr4() & ~CR4_PCIDE);
    check_trap(TRAP(write_cr3(1ul << 60)), GP, 0, "CR3 beyond the physical address size");
}

void guest_main(void)
{
    page = (uint64_t)alloc_pages(1);
    test_smep();
    test_smap();
    test_flushes();
    test_pcid();
}
