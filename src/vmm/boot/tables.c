/* What a kernel finds in memory when it starts: the memory map, Linux's zero page, PVH's start info, a GDT and an identity
 * mapping of the first 4 GiB. */
#include "vmm/boot/boot_impl.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "dev/acpi/tables.h"
#include "dev/pci.h"
#include "dev/power.h"

#define ZP_RSDP 0x070u
#define ZP_INITRD_HIGH 0x0c0u
#define ZP_INITRD_LEN_HIGH 0x0c4u
#define ZP_E820_COUNT 0x1e8u
#define ZP_BOOT_FLAG 0x1feu
#define ZP_MAGIC 0x202u
#define ZP_LOADER 0x210u
#define ZP_INITRD 0x218u
#define ZP_INITRD_LEN 0x21cu
#define ZP_CMDLINE 0x228u
#define ZP_E820 0x2d0u
#define LOADER_UNDEFINED 0xff

#define PVH_MAGIC 0x336ec578u
#define PVH_VERSION 1

unsigned boot_memory_map(const struct mem *mem, struct memory_range ranges[MEMORY_RANGES_MAX])
{
    unsigned n = 0;
    const struct mem_slot *low = mem_slot(mem, 0);
    ranges[n++] = (struct memory_range){0, BOOT_LOW_END, MEMORY_RAM};
    ranges[n++] = (struct memory_range){BOOT_LOW_END, 0xa0000 - BOOT_LOW_END, MEMORY_RESERVED};
    ranges[n++] = (struct memory_range){ACPI_BASE, BOOT_HIGH_START - ACPI_BASE, MEMORY_RESERVED};
    ranges[n++] = (struct memory_range){BOOT_HIGH_START, low->len - BOOT_HIGH_START, MEMORY_RAM};
    ranges[n++] = (struct memory_range){PCI_ECAM_BASE, PCI_ECAM_SIZE, MEMORY_RESERVED};
    for (unsigned i = 1; i < mem_slot_count(mem); i++)
        ranges[n++] = (struct memory_range){mem_slot(mem, i)->gpa, mem_slot(mem, i)->len, MEMORY_RAM};
    return n;
}

int boot_write_zero_page(struct mem *mem, uint8_t *zero_page, uint64_t initrd, uint64_t initrd_len, struct err *err)
{
    struct memory_range ranges[MEMORY_RANGES_MAX];
    unsigned count = boot_memory_map(mem, ranges);
    store_le64(zero_page + ZP_RSDP, ACPI_RSDP);
    store_le16(zero_page + ZP_BOOT_FLAG, 0xaa55);
    memcpy(zero_page + ZP_MAGIC, "HdrS", 4);
    zero_page[ZP_LOADER] = LOADER_UNDEFINED;
    store_le32(zero_page + ZP_INITRD, (uint32_t)initrd);
    store_le32(zero_page + ZP_INITRD_LEN, (uint32_t)initrd_len);
    store_le32(zero_page + ZP_INITRD_HIGH, (uint32_t)(initrd >> 32));
    store_le32(zero_page + ZP_INITRD_LEN_HIGH, (uint32_t)(initrd_len >> 32));
    store_le32(zero_page + ZP_CMDLINE, BOOT_CMDLINE);
    zero_page[ZP_E820_COUNT] = (uint8_t)count;
    for (unsigned i = 0; i < count; i++) {
        uint8_t *entry = zero_page + ZP_E820 + i * 20;
        store_le64(entry, ranges[i].start);
        store_le64(entry + 8, ranges[i].len);
        store_le32(entry + 16, ranges[i].type);
    }
    int r = mem_write(mem, BOOT_ZERO_PAGE, zero_page, 4096);
    return r < 0 ? err_set(err, -r, "boot parameters") : 0;
}

static int write_pvh_memmap(struct mem *mem, uint32_t *ret_count)
{
    struct memory_range ranges[MEMORY_RANGES_MAX];
    uint8_t table[MEMORY_RANGES_MAX * 24] = {0};
    unsigned count = boot_memory_map(mem, ranges);
    for (unsigned i = 0; i < count; i++) {
        store_le64(table + i * 24, ranges[i].start);
        store_le64(table + i * 24 + 8, ranges[i].len);
        store_le32(table + i * 24 + 16, ranges[i].type);
    }
    *ret_count = count;
    return mem_write(mem, BOOT_PVH_MEMMAP, table, sizeof table);
}

int boot_write_pvh_info(struct mem *mem, uint64_t initrd, uint64_t initrd_len, struct err *err)
{
    uint8_t info[56] = {0}, module[32] = {0};
    uint32_t ranges;
    int r = write_pvh_memmap(mem, &ranges);
    store_le64(module, initrd);
    store_le64(module + 8, initrd_len);
    store_le32(info, PVH_MAGIC);
    store_le32(info + 4, PVH_VERSION);
    store_le32(info + 12, initrd_len ? 1 : 0);
    store_le64(info + 16, initrd_len ? BOOT_PVH_MODULES : 0);
    store_le64(info + 24, BOOT_CMDLINE);
    store_le64(info + 32, ACPI_RSDP);
    store_le64(info + 40, BOOT_PVH_MEMMAP);
    store_le32(info + 48, ranges);
    if (r == 0)
        r = mem_write(mem, BOOT_PVH_MODULES, module, sizeof module);
    if (r == 0)
        r = mem_write(mem, BOOT_PVH_INFO, info, sizeof info);
    return r < 0 ? err_set(err, -r, "PVH start info") : 0;
}

static int write_gdt(struct mem *mem, uint64_t code)
{
    uint64_t gdt[6] = {0};
    gdt[BOOT_CODE_SELECTOR / 8] = code;
    gdt[BOOT_DATA_SELECTOR / 8] = UINT64_C(0x00cf93000000ffff);
    gdt[BOOT_TSS_SELECTOR / 8] = UINT64_C(0x00008b0000000067);
    return mem_write(mem, BOOT_GDT, gdt, sizeof gdt);
}

static int write_identity_map(struct mem *mem)
{
    uint64_t table[512] = {BOOT_PAGE_TABLES + 0x1000 + (PTE_P | PTE_W)};
    int r = mem_write(mem, BOOT_PAGE_TABLES, table, sizeof table);
    for (unsigned i = 0; i < 512; i++)
        table[i] = i < 4 ? (BOOT_PAGE_TABLES + 0x2000 + i * 0x1000) | PTE_P | PTE_W : 0;
    if (r == 0)
        r = mem_write(mem, BOOT_PAGE_TABLES + 0x1000, table, sizeof table);
    for (unsigned page = 0; r == 0 && page < 4; page++) {
        for (unsigned i = 0; i < 512; i++)
            table[i] = (uint64_t)(page * 512 + i) << 21 | PTE_P | PTE_W | PTE_PS;
        r = mem_write(mem, BOOT_PAGE_TABLES + 0x2000 + page * 0x1000, table, sizeof table);
    }
    return r;
}

/* What stands for firmware at the reset vector: Linux without EFI restarts a hardware-reduced machine by jumping there. */
static int write_reset_vector(struct mem *mem)
{
    const uint8_t code[] = {
        0xba, (POWER_PORT + POWER_RESET) & 0xff, (POWER_PORT + POWER_RESET) >> 8, /* mov dx, reset register */
        0xb0, POWER_RESET_VALUE,                                                  /* mov al, value */
        0xee,                                                                     /* out dx, al */
        0xf4, 0xeb, 0xfd,                                                         /* hlt; jmp to it */
    };
    return mem_write(mem, BOOT_RESET_VECTOR, code, sizeof code);
}

int boot_write_tables(struct mem *mem, enum boot_protocol protocol, struct err *err)
{
    int r = write_gdt(mem, protocol == BOOT_LINUX64 ? UINT64_C(0x00af9b000000ffff) : UINT64_C(0x00cf9b000000ffff));
    if (r == 0)
        r = write_identity_map(mem);
    if (r == 0)
        r = write_reset_vector(mem);
    return r < 0 ? err_set(err, -r, "boot page tables") : 0;
}
