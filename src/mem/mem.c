#include "mem/mem.h"

#include <errno.h>
#include <linux/mman.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_SIZE (UINT64_C(2) << 20)

struct mem {
    uint64_t size;
    uint8_t *base;
    unsigned slot_count;
    struct mem_slot slots[2];
    uint64_t *dirty[2]; /* NULL while the log is off */
    mem_write_fn *on_write;
    void *on_write_arg;
};

static void mem_lay_out(struct mem *mem)
{
    uint64_t low = mem->size < MEM_LOW_MAX ? mem->size : MEM_LOW_MAX;
    mem->slots[0] = (struct mem_slot){.gpa = 0, .len = low, .offset = 0, .hva = mem->base};
    mem->slot_count = 1;
    if (mem->size > low) {
        mem->slots[1] = (struct mem_slot){
            .gpa = MEM_HIGH_BASE, .len = mem->size - low, .offset = low, .hva = mem->base + low};
        mem->slot_count = 2;
    }
}

static void trim(uint8_t *at, size_t bytes)
{
    if (bytes)
        munmap(at, bytes);
}

void *mem_map(size_t bytes)
{
    bytes = (bytes + MEM_PAGE_SIZE - 1) & ~((size_t)MEM_PAGE_SIZE - 1);
    uint8_t *range = mmap(NULL, bytes + HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
        return NULL;
    size_t before = -(uintptr_t)range & (HUGE_SIZE - 1);
    uint8_t *start = range + before;
    trim(range, before);
    trim(start + bytes, HUGE_SIZE - before);
    madvise(start, bytes, MADV_HUGEPAGE); /* a wish: not all kernels have them */
    return start;
}

/* Reserved at once: a missing one would show as SIGBUS when the guest touches it. */
static void *map_huge(uint64_t bytes)
{
    void *range = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
    return range == MAP_FAILED ? NULL : range;
}

int mem_create(uint64_t bytes, bool hugepages, struct mem **ret_mem, struct err *err)
{
    uint64_t page = hugepages ? HUGE_SIZE : MEM_PAGE_SIZE;
    if (!bytes || bytes > UINT64_C(1) << 46)
        return err_say(err, EINVAL, "guest memory of %llu bytes is not possible", (unsigned long long)bytes);
    bytes = (bytes + page - 1) & ~(page - 1);
    uint8_t *base = hugepages ? map_huge(bytes) : mem_map(bytes);
    if (!base && hugepages)
        return err_say(err, errno, "guest memory of %llu MiB: too few huge pages are free; as root: sysctl vm.nr_hugepages=%llu or more",
                       (unsigned long long)bytes >> 20, (unsigned long long)(bytes / HUGE_SIZE));
    if (!base)
        return err_set(err, errno, "guest memory of %llu MiB", (unsigned long long)bytes >> 20);
    madvise(base, bytes, MADV_DONTDUMP);
    struct mem *mem = calloc(1, sizeof *mem);
    if (!mem) {
        munmap(base, bytes);
        return err_set(err, ENOMEM, "guest memory");
    }
    *mem = (struct mem){.size = bytes, .base = base};
    mem_lay_out(mem);
    *ret_mem = mem;
    return 0;
}

void mem_free(struct mem *mem)
{
    if (!mem)
        return;
    mem_dirty_stop(mem);
    munmap(mem->base, mem->size);
    free(mem);
}

unsigned mem_slot_count(const struct mem *mem)
{
    return mem->slot_count;
}

const struct mem_slot *mem_slot(const struct mem *mem, unsigned index)
{
    return &mem->slots[index];
}

uint64_t mem_size(const struct mem *mem)
{
    return mem->size;
}

void *mem_ptr(const struct mem *mem, uint64_t gpa, uint64_t len)
{
    for (unsigned i = 0; i < mem->slot_count; i++) {
        const struct mem_slot *slot = &mem->slots[i];
        uint64_t offset = gpa - slot->gpa;
        if (offset < slot->len && len <= slot->len - offset)
            return slot->hva + offset;
    }
    return NULL;
}

uint64_t mem_gpa_of(const struct mem *mem, const void *hva)
{
    uint64_t offset = (uint64_t)((const uint8_t *)hva - mem->base);
    if (offset >= mem->size)
        return UINT64_MAX;
    return offset < mem->slots[0].len ? offset : offset - mem->slots[1].offset + mem->slots[1].gpa;
}

int mem_read(const struct mem *mem, uint64_t gpa, void *data, size_t len)
{
    const void *from = mem_ptr(mem, gpa, len);
    if (!from)
        return -EFAULT;
    memcpy(data, from, len);
    return 0;
}

int mem_write(struct mem *mem, uint64_t gpa, const void *data, size_t len)
{
    void *to = mem_ptr(mem, gpa, len);
    if (!to)
        return -EFAULT;
    memcpy(to, data, len);
    mem_mark_dirty(mem, gpa, len);
    return 0;
}

void mem_mark_dirty(struct mem *mem, uint64_t gpa, uint64_t len)
{
    if (!len)
        return;
    for (unsigned i = 0; i < mem->slot_count; i++) {
        uint64_t *bits = __atomic_load_n(&mem->dirty[i], __ATOMIC_ACQUIRE);
        uint64_t offset = gpa - mem->slots[i].gpa;
        if (!bits || offset >= mem->slots[i].len || len > mem->slots[i].len - offset)
            continue;
        for (uint64_t page = offset / MEM_PAGE_SIZE; page <= (offset + len - 1) / MEM_PAGE_SIZE; page++)
            __atomic_fetch_or(&bits[page / 64], UINT64_C(1) << (page % 64), __ATOMIC_RELAXED);
    }
    if (mem->on_write)
        mem->on_write(mem->on_write_arg, gpa, len);
}

void mem_set_write_hook(struct mem *mem, mem_write_fn *fn, void *arg)
{
    mem->on_write_arg = arg;
    mem->on_write = fn;
}

static size_t slot_bitmap_words(const struct mem_slot *slot)
{
    return (size_t)((slot->len / MEM_PAGE_SIZE + 63) / 64);
}

int mem_dirty_start(struct mem *mem, struct err *err)
{
    for (unsigned i = 0; i < mem->slot_count; i++) {
        if (mem->dirty[i])
            continue;
        uint64_t *bits = calloc(slot_bitmap_words(&mem->slots[i]), sizeof *bits);
        if (!bits)
            return err_set(err, ENOMEM, "dirty log");
        __atomic_store_n(&mem->dirty[i], bits, __ATOMIC_RELEASE);
    }
    return 0;
}

/* Only with all writers stopped: the bitmaps go away. */
void mem_dirty_stop(struct mem *mem)
{
    for (unsigned i = 0; i < mem->slot_count; i++) {
        free(mem->dirty[i]);
        mem->dirty[i] = NULL;
    }
}

void mem_dirty_fetch(struct mem *mem, unsigned index, uint64_t *bitmap)
{
    uint64_t *bits = mem->dirty[index];
    for (size_t i = 0; bits && i < slot_bitmap_words(&mem->slots[index]); i++)
        bitmap[i] |= __atomic_exchange_n(&bits[i], 0, __ATOMIC_RELAXED);
}

int mem_discard(struct mem *mem, uint64_t gpa, uint64_t len)
{
    uint64_t start = (gpa + MEM_PAGE_SIZE - 1) & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    uint64_t end = (gpa + len) & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    if (end <= start)
        return 0;
    uint8_t *hva = mem_ptr(mem, start, end - start);
    if (!hva)
        return -EFAULT;
    if (madvise(hva, end - start, MADV_DONTNEED) < 0)
        return -errno;
    mem_mark_dirty(mem, start, end - start);
    return 0;
}
