/* One loop serves 4-level, PAE and 32-bit paging: they differ in entry size, index width and where rights are kept. */
#include "cpu/jit/walk.h"

#include "cpu/jit/mmu.h"
#include "cpu/jit/vcpu.h"

struct paging {
    unsigned levels, index_bits, entry_bytes;
};

static struct paging paging_of(const struct jit_vcpu *cpu)
{
    if (cpu->efer & EFER_LMA)
        return (struct paging){4, 9, 8};
    if (cpu->cr4 & CR4_PAE)
        return (struct paging){3, 9, 8};
    return (struct paging){2, 10, 4};
}

static uint64_t entry_load(const void *at, unsigned bytes)
{
    return bytes == 8 ? __atomic_load_n((const uint64_t *)at, __ATOMIC_RELAXED)
                      : __atomic_load_n((const uint32_t *)at, __ATOMIC_RELAXED);
}

/* Sets bits in a table entry unless the guest changed it meanwhile: then the walk starts over. */
static bool entry_set(void *at, unsigned bytes, uint64_t old, uint64_t bits)
{
    if (bytes == 8)
        return __atomic_compare_exchange_n((uint64_t *)at, &old, old | bits, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    uint32_t old32 = (uint32_t)old;
    return __atomic_compare_exchange_n((uint32_t *)at, &old32, old32 | (uint32_t)bits, false, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}

static uint64_t reserved_bits(const struct jit_vcpu *cpu, const struct paging *p, unsigned level, uint64_t entry)
{
    if (p->entry_bytes == 4)
        return level == 2 && (entry & PTE_PS) ? UINT64_C(0x200000) : 0;
    uint64_t reserved = PTE_ADDRESS & ~((UINT64_C(1) << cpu->phys_bits) - 1);
    if (p->levels == 3 && level == 3)
        return reserved | UINT64_C(0xfff00000000001e6);
    if (!(cpu->efer & EFER_NXE))
        reserved |= PTE_NX;
    if (p->levels == 3)
        reserved |= UINT64_C(0x7ff0000000000000);
    if (level == 4)
        reserved |= PTE_PS;
    if (level == 3 && (entry & PTE_PS))
        reserved |= UINT64_C(0x3fffe000);
    if (level == 2 && (entry & PTE_PS))
        reserved |= UINT64_C(0x1fe000);
    return reserved;
}

static uint64_t leaf_address(const struct paging *p, unsigned level, uint64_t entry, uint64_t linear)
{
    uint64_t span = (UINT64_C(1) << (12 + p->index_bits * (level - 1))) - 1;
    if (p->entry_bytes == 4 && level == 2) /* PSE-36: address bits 32-39 sit in 13-20 */
        return (entry & UINT64_C(0xffc00000)) | (entry & UINT64_C(0x1fe000)) << 19 | (linear & span);
    return (entry & PTE_ADDRESS & ~span) | (linear & span);
}

/* Rights gathered over the levels: what the page allows to this access. */
static bool allowed(const struct jit_vcpu *cpu, unsigned access, bool user, uint64_t rights, bool no_execute)
{
    bool user_page = rights & PTE_U;
    if (access & ACCESS_FETCH)
        return !no_execute && (user ? user_page : !(user_page && (cpu->cr4 & CR4_SMEP)));
    if (user)
        return user_page && (!(access & ACCESS_WRITE) || (rights & PTE_W));
    if (user_page && (cpu->cr4 & CR4_SMAP) && (!(cpu->rflags & FLAG_AC) || (access & ACCESS_SYSTEM)))
        return false;
    return !(access & ACCESS_WRITE) || (rights & PTE_W) || !(cpu->cr0 & CR0_WP);
}

static uint32_t fault_code(const struct jit_vcpu *cpu, unsigned access, bool user, uint32_t code)
{
    if (access & ACCESS_WRITE)
        code |= PF_WRITE;
    if (user)
        code |= PF_USER;
    bool tells_fetch = (cpu->efer & EFER_NXE && cpu->cr4 & CR4_PAE) || cpu->cr4 & CR4_SMEP;
    if ((access & ACCESS_FETCH) && tells_fetch)
        code |= PF_FETCH;
    return code | WALK_FAULT;
}

/* A walk, or WALK_AGAIN when an entry changed under it. */
#define WALK_AGAIN (1u << 30)

static uint32_t walk_once(struct jit_vcpu *cpu, uint64_t linear, unsigned access, bool user,
                          struct walk_result *ret_result)
{
    struct paging p = paging_of(cpu);
    uint64_t table = p.entry_bytes == 4 ? cpu->cr3 & UINT64_C(0xfffff000)
                     : p.levels == 3    ? cpu->cr3 & UINT64_C(0xffffffe0)
                                        : cpu->cr3 & PTE_ADDRESS;
    uint64_t rights = PTE_U | PTE_W;
    bool no_execute = false;
    for (unsigned level = p.levels;; level--) {
        unsigned shift = 12 + p.index_bits * (level - 1);
        uint64_t index = (linear >> shift) & ((1u << p.index_bits) - 1);
        if (p.levels == 3 && level == 3)
            index &= 3;
        void *at = mem_ptr(cpu->mem, table + index * p.entry_bytes, p.entry_bytes);
        uint64_t entry = at ? entry_load(at, p.entry_bytes) : 0;
        if (!(entry & PTE_P))
            return fault_code(cpu, access, user, 0);
        bool may_be_large = p.entry_bytes == 8 || cpu->cr4 & CR4_PSE; /* else the CPU ignores the bit */
        if (entry & reserved_bits(cpu, &p, level, entry))
            return fault_code(cpu, access, user, PF_PRESENT | PF_RESERVED);
        bool has_rights = !(p.levels == 3 && level == 3);
        if (has_rights) {
            rights &= entry;
            no_execute |= (entry & PTE_NX) != 0;
        }
        bool leaf = level == 1 || ((entry & PTE_PS) && may_be_large && has_rights && level < 4);
        if (leaf && !allowed(cpu, access, user, rights, no_execute))
            return fault_code(cpu, access, user, PF_PRESENT);
        uint64_t set = has_rights ? PTE_A : 0;
        if (leaf && (access & ACCESS_WRITE))
            set |= PTE_D;
        if ((entry & set) != set && !entry_set(at, p.entry_bytes, entry, set))
            return WALK_AGAIN;
        if (leaf) {
            *ret_result = (struct walk_result){
                .gpa = leaf_address(&p, level, entry, linear),
                .bits = (uint8_t)shift,
                .global = (entry & PTE_G) && (cpu->cr4 & CR4_PGE),
                .writable = ((entry | set) & PTE_D) &&
                            allowed(cpu, (access & ~ACCESS_FETCH) | ACCESS_WRITE, user, rights, no_execute)};
            return 0;
        }
        table = p.entry_bytes == 4 ? entry & UINT64_C(0xfffff000) : entry & PTE_ADDRESS;
    }
}

uint32_t walk_page(struct jit_vcpu *cpu, uint64_t linear, unsigned access, bool user, struct walk_result *ret_result)
{
    if (!(cpu->cr0 & CR0_PG)) {
        *ret_result = (struct walk_result){.gpa = linear & UINT32_MAX, .global = true, .writable = true};
        return 0;
    }
    uint32_t code;
    do
        code = walk_once(cpu, linear, access, user, ret_result);
    while (code == WALK_AGAIN);
    return code;
}
