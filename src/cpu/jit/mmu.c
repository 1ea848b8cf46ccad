/* Linear memory accessors for C code. Compiled without vector registers: translated code's are live. */
#include "cpu/jit/mmu.h"

#include <string.h>

#include "cpu/jit/cache.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/lapic.h"
#include "cpu/jit/vcpu.h"
#include "cpu/jit/walk.h"
#include "cpu/jit/watch.h"

#define PAGE_MASK ((uint64_t)MEM_PAGE_SIZE - 1)

/* What one page's share of an access resolves to: host RAM, or MMIO at gpa. */
struct place {
    uint8_t *host;
    uint64_t gpa;
    bool has_code;
};

/* Guest memory at any address: one access of the host's CPU, as it would be the guest's. */
struct unaligned {
    union {
        uint16_t u16;
        uint32_t u32;
        uint64_t u64;
    };
} __attribute__((packed, may_alias));

/* By hand, since rep movsb starts too slowly for operands of instructions; no loop that a compiler takes for memcpy. */
static void copy_bytes(void *to, const void *from, size_t len)
{
    const uint8_t *in = from;
    uint8_t *out = to;
    if (len > 64) {
        __asm__ volatile("rep movsb" : "+D"(out), "+S"(in), "+c"(len) : : "memory");
        return;
    }
    for (uint64_t word; len >= 8; len -= 8)
        __asm__ volatile("mov (%2), %0\n\tmov %0, (%1)\n\tlea 8(%1), %1\n\tlea 8(%2), %2"
                         : "=&r"(word), "+r"(out), "+r"(in) : : "memory");
    if (len & 4) {
        ((struct unaligned *)out)->u32 = ((const struct unaligned *)in)->u32;
        out += 4;
        in += 4;
    }
    if (len & 2) {
        ((struct unaligned *)out)->u16 = ((const struct unaligned *)in)->u16;
        out += 2;
        in += 2;
    }
    if (len & 1)
        *out = *in;
}

static uint64_t check_linear(struct jit_vcpu *cpu, uint64_t linear, unsigned access)
{
    if (!(cpu->efer & EFER_LMA))
        return linear & UINT32_MAX;
    if ((uint64_t)((int64_t)(linear << 16) >> 16) != linear)
        vcpu_raise(cpu, access & ACCESS_STACK ? VEC_SS : VEC_GP, 0);
    return linear;
}

static struct place resolve(struct jit_vcpu *cpu, uint64_t linear, unsigned access)
{
    linear = check_linear(cpu, linear, access);
    enum tlb_pool pool = tlb_pool_of(cpu, access);
    enum tlb_access kind = access & ACCESS_WRITE ? TLB_WRITE : TLB_READ;
    struct tlb_entry *entry = &cpu->tlb.entries[pool][kind][linear / MEM_PAGE_SIZE % TLB_ENTRIES];
    const struct tlb_entry *second = NULL;
    if (entry->tag != (linear & ~PAGE_MASK))
        second = tlb_second(cpu, pool, kind, linear);
    if (second) /* to the first, where inline checks look: not all of them try the second themselves */
        *entry = *second;
    if (entry->tag == (linear & ~PAGE_MASK))
        return (struct place){.host = entry->host + (linear & PAGE_MASK)};
    struct walk_result walk;
    bool user = cpu->cpl == 3 && !(access & ACCESS_SYSTEM);
    uint32_t fault = walk_page(cpu, linear, access, user, &walk);
    if (fault)
        vcpu_raise_page_fault(cpu, linear, fault & ~WALK_FAULT);
    uint8_t *page = mem_ptr(cpu->mem, walk.gpa & ~PAGE_MASK, MEM_PAGE_SIZE);
    if (!page)
        return (struct place){.gpa = walk.gpa};
    tlb_fill(cpu, pool, linear, &walk, page);
    return (struct place){.host = page + (linear & PAGE_MASK),
                          .has_code = (access & ACCESS_WRITE) && cache_page_has_code(cpu, page)};
}

static bool is_lapic(const struct jit_vcpu *cpu, uint64_t gpa)
{
    return (gpa & ~PAGE_MASK) == (cpu->lapic.apic_base & PTE_ADDRESS) && (cpu->lapic.apic_base & (3u << 10)) == 1u << 11;
}

static uint64_t mmio_load(struct jit_vcpu *cpu, uint64_t gpa, unsigned size)
{
    if (is_lapic(cpu, gpa))
        return lapic_mmio_read(cpu, (uint32_t)(gpa & PAGE_MASK));
    fpu_save(cpu);
    return cpu->engine->machine.mmio_read(cpu->engine->machine.arg, gpa, size);
}

static void mmio_store(struct jit_vcpu *cpu, uint64_t gpa, uint64_t value, unsigned size)
{
    if (is_lapic(cpu, gpa)) {
        lapic_mmio_write(cpu, (uint32_t)(gpa & PAGE_MASK), (uint32_t)value);
        return;
    }
    fpu_save(cpu);
    cpu->engine->machine.mmio_write(cpu->engine->machine.arg, gpa, value, size);
}

/* Device registers are at most 8 bytes wide: longer or odd accesses go in naturally sized pieces. */
static unsigned mmio_piece(uint64_t gpa, size_t len)
{
    unsigned size = 8;
    while (size > len || (gpa & (size - 1)))
        size /= 2;
    return size;
}

static void place_read(struct jit_vcpu *cpu, const struct place *place, uint8_t *data, size_t len)
{
    if (place->host) {
        copy_bytes(data, place->host, len);
        return;
    }
    for (size_t done = 0; done < len;) {
        unsigned size = mmio_piece(place->gpa + done, len - done);
        uint64_t value = mmio_load(cpu, place->gpa + done, size);
        copy_bytes(data + done, &value, size);
        done += size;
    }
}

static void place_write(struct jit_vcpu *cpu, const struct place *place, const uint8_t *data, size_t len)
{
    if (place->host) {
        copy_bytes(place->host, data, len);
        if (place->has_code)
            cache_code_written(cpu, place->host, len);
        return;
    }
    for (size_t done = 0; done < len;) {
        unsigned size = mmio_piece(place->gpa + done, len - done);
        uint64_t value = 0;
        copy_bytes(&value, data + done, size);
        mmio_store(cpu, place->gpa + done, value, size);
        done += size;
    }
}

/* Alignment checks and breakpoints, which come behind canonical form and before page faults. */
static void watch(struct jit_vcpu *cpu, uint64_t linear, uint64_t size, unsigned access)
{
    if (vcpu_watched(cpu))
        watch_access(cpu, check_linear(cpu, linear, access), size, access);
}

static size_t bytes_in_page(uint64_t linear, size_t len)
{
    size_t room = MEM_PAGE_SIZE - (linear & PAGE_MASK);
    return len < room ? len : room;
}

void mmu_read(struct jit_vcpu *cpu, uint64_t linear, void *data, size_t len, unsigned access)
{
    uint8_t *to = data;
    watch(cpu, linear, len, access & ~ACCESS_WRITE);
    while (len) {
        size_t piece = bytes_in_page(linear, len);
        struct place place = resolve(cpu, linear, access & ~ACCESS_WRITE);
        place_read(cpu, &place, to, piece);
        linear += piece;
        to += piece;
        len -= piece;
    }
}

void mmu_write(struct jit_vcpu *cpu, uint64_t linear, const void *data, size_t len, unsigned access)
{
    const uint8_t *from = data;
    access |= ACCESS_WRITE;
    watch(cpu, linear, len, access);
    if (bytes_in_page(linear, len) < len) { /* fault before the first byte changes, in address order */
        resolve(cpu, linear, access);
        for (size_t at = bytes_in_page(linear, len); at < len; at += MEM_PAGE_SIZE)
            resolve(cpu, linear + at, access);
    }
    while (len) {
        size_t piece = bytes_in_page(linear, len);
        struct place place = resolve(cpu, linear, access);
        place_write(cpu, &place, from, piece);
        linear += piece;
        from += piece;
        len -= piece;
    }
}

uint64_t mmu_load(struct jit_vcpu *cpu, uint64_t linear, unsigned size, unsigned access)
{
    uint64_t value = 0;
    watch(cpu, linear, size, access & ~ACCESS_WRITE);
    if (bytes_in_page(linear, size) < size) {
        mmu_read(cpu, linear, &value, size, access);
        return value;
    }
    struct place place = resolve(cpu, linear, access & ~ACCESS_WRITE);
    if (!place.host)
        place_read(cpu, &place, (uint8_t *)&value, size);
    else if (size == 8)
        value = ((const struct unaligned *)place.host)->u64;
    else if (size == 4)
        value = ((const struct unaligned *)place.host)->u32;
    else if (size == 2)
        value = ((const struct unaligned *)place.host)->u16;
    else
        value = *place.host;
    return value;
}

void mmu_store(struct jit_vcpu *cpu, uint64_t linear, uint64_t value, unsigned size, unsigned access)
{
    watch(cpu, linear, size, access | ACCESS_WRITE);
    if (bytes_in_page(linear, size) < size) {
        mmu_write(cpu, linear, &value, size, access);
        return;
    }
    struct place place = resolve(cpu, linear, access | ACCESS_WRITE);
    if (!place.host) {
        place_write(cpu, &place, (const uint8_t *)&value, size);
        return;
    }
    if (size == 8)
        ((struct unaligned *)place.host)->u64 = value;
    else if (size == 4)
        ((struct unaligned *)place.host)->u32 = (uint32_t)value;
    else if (size == 2)
        ((struct unaligned *)place.host)->u16 = (uint16_t)value;
    else
        *place.host = (uint8_t)value;
    if (place.has_code)
        cache_code_written(cpu, place.host, size);
}

void mmu_operand_map(struct jit_vcpu *cpu, struct mmu_operand *operand, uint64_t linear, uint32_t size, unsigned access)
{
    operand->linear = linear;
    operand->size = size;
    operand->access = access;
    watch(cpu, linear, size, access);
    struct place place = resolve(cpu, linear, access);
    if (place.host && bytes_in_page(linear, size) == size) {
        operand->host = place.host;
        operand->bounced = false;
        return;
    }
    if (bytes_in_page(linear, size) < size)
        resolve(cpu, (linear | PAGE_MASK) + 1, access);
    operand->host = operand->bounce;
    operand->bounced = true;
    if (!(access & ACCESS_WRITE) || (access & ACCESS_READ_WRITE))
        mmu_read(cpu, linear, operand->bounce, size, access & ~ACCESS_WRITE);
}

void mmu_operand_done(struct jit_vcpu *cpu, struct mmu_operand *operand)
{
    if (!(operand->access & ACCESS_WRITE))
        return;
    if (operand->bounced)
        mmu_write(cpu, operand->linear, operand->bounce, operand->size, operand->access);
    else if (cache_page_has_code(cpu, operand->host))
        cache_code_written(cpu, operand->host, operand->size);
}

uint8_t *mmu_page_ptr(struct jit_vcpu *cpu, uint64_t linear, unsigned access)
{
    struct place place = resolve(cpu, linear, access);
    return place.has_code ? NULL : place.host;
}

bool mmu_tlb_load(struct jit_vcpu *cpu, uint64_t linear, unsigned access)
{
    struct place place = resolve(cpu, linear, access);
    return place.host && !place.has_code;
}

static struct fetch_entry *fetch_entry(struct jit_vcpu *cpu, uint64_t linear, uint32_t *ret_fault)
{
    *ret_fault = 0;
    uint64_t page = linear & ~PAGE_MASK;
    uint32_t pool = cpu->cpl == 3 ? TLB_USER : TLB_SUPER;
    struct fetch_entry *entry = &cpu->fetch[page / MEM_PAGE_SIZE % FETCH_ENTRIES];
    if (entry->tag == page && entry->epoch == cpu->flush_epoch && entry->pool == pool)
        return entry;
    struct walk_result walk;
    *ret_fault = walk_page(cpu, linear, ACCESS_FETCH, cpu->cpl == 3, &walk);
    if (*ret_fault)
        return NULL;
    entry->tag = page;
    entry->epoch = cpu->flush_epoch;
    entry->pool = pool;
    entry->gpa = walk.gpa & ~PAGE_MASK;
    entry->global = walk.global;
    entry->host = mem_ptr(cpu->mem, entry->gpa, MEM_PAGE_SIZE);
    tlb_note_size(cpu, linear, walk.bits);
    return entry;
}

unsigned mmu_fetch(struct jit_vcpu *cpu, uint64_t linear, uint8_t *bytes, unsigned max)
{
    linear = check_linear(cpu, linear, ACCESS_FETCH);
    unsigned got = 0;
    while (got < max) {
        uint32_t fault;
        unsigned piece = (unsigned)bytes_in_page(linear + got, max - got);
        const struct fetch_entry *entry = fetch_entry(cpu, linear + got, &fault);
        if (!entry && !got)
            vcpu_raise_page_fault(cpu, linear, fault & ~WALK_FAULT);
        if (!entry)
            break;
        if (entry->host)
            copy_bytes(bytes + got, entry->host + ((linear + got) & PAGE_MASK), piece);
        else /* code in device space: reads as an open bus, which is undefined opcodes soon enough */
            for (unsigned i = 0; i < piece; i++)
                bytes[got + i] = 0xff;
        got += piece;
    }
    return got;
}

void mmu_fetch_fault(struct jit_vcpu *cpu, uint64_t linear)
{
    linear = check_linear(cpu, linear, ACCESS_FETCH);
    uint32_t fault;
    if (!fetch_entry(cpu, linear, &fault))
        vcpu_raise_page_fault(cpu, linear, fault & ~WALK_FAULT);
}

const struct fetch_entry *mmu_fetch_page(struct jit_vcpu *cpu, uint64_t linear)
{
    linear = check_linear(cpu, linear, ACCESS_FETCH);
    uint32_t fault;
    const struct fetch_entry *entry = fetch_entry(cpu, linear, &fault);
    if (!entry)
        vcpu_raise_page_fault(cpu, linear, fault & ~WALK_FAULT);
    return entry;
}

const struct fetch_entry *mmu_fetch_peek(struct jit_vcpu *cpu, uint64_t linear)
{
    if ((uint64_t)((int64_t)(linear << 16) >> 16) != linear)
        return NULL;
    uint32_t fault;
    return fetch_entry(cpu, linear, &fault);
}

uint64_t mmu_fetch_gpa(struct jit_vcpu *cpu, uint64_t linear)
{
    const struct fetch_entry *entry = mmu_fetch_page(cpu, linear);
    return entry->host ? entry->gpa + (linear & PAGE_MASK) : UINT64_MAX;
}
