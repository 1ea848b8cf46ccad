/* Private to the boot loaders: where things lie in low memory, and bounded looks into an image. */
#pragma once

#include "vmm/boot/boot.h"

#define BOOT_GDT 0x500u
#define BOOT_PVH_INFO 0x6000u
#define BOOT_PVH_MODULES 0x6100u
#define BOOT_PVH_MEMMAP 0x6200u
#define BOOT_ZERO_PAGE 0x7000u
#define BOOT_PAGE_TABLES 0x9000u /* six pages: PML4, PDPT, four page directories */
#define BOOT_CMDLINE 0x20000u
#define BOOT_CMDLINE_MAX 0xffffu
#define BOOT_LOW_END 0x9fc00u    /* conventional memory ends; then the BIOS area up to 1 MiB */
#define BOOT_HIGH_START 0x100000u
#define BOOT_RESET_VECTOR 0xffff0u
#define BOOT_STACK_TOP 0x8ff0u   /* for kernels that push before they set a stack of their own */

#define BOOT_CODE_SELECTOR 0x10
#define BOOT_DATA_SELECTOR 0x18
#define BOOT_TSS_SELECTOR 0x20

/* A kernel file. Of one that is read from a descriptor only the head is in memory: the rest goes to where the guest wants it. */
struct image {
    const uint8_t *data;
    size_t held, len; /* bytes at `data`; bytes of the file */
    int fd;           /* of a file that is not all held, not owned; else -1 */
};

/* The bytes [offset, offset+len) of the image, or NULL when they are not all held. */
static inline const uint8_t *image_at(const struct image *image, uint64_t offset, uint64_t len)
{
    if (offset > image->held || len > image->held - offset)
        return NULL;
    return image->data + offset;
}
/* Copies bytes of the file, which has them. */
must_check int image_copy(const struct image *image, uint64_t offset, uint64_t len, uint8_t *to, struct err *err);

struct memory_range {
    uint64_t start, len;
    uint32_t type; /* as in E820 and in PVH's memory map */
};
#define MEMORY_RAM 1u
#define MEMORY_RESERVED 2u
#define MEMORY_RANGES_MAX 8

unsigned boot_memory_map(const struct mem *mem, struct memory_range ranges[MEMORY_RANGES_MAX]);

must_check int boot_load_bzimage(struct mem *mem, const struct image *image, uint8_t *zero_page,
                                 struct boot_start *ret_start, struct err *err);
must_check int boot_load_elf(struct mem *mem, const struct image *image, struct boot_start *ret_start, struct err *err);
must_check int boot_write_zero_page(struct mem *mem, uint8_t *zero_page, uint64_t initrd, uint64_t initrd_len,
                                    struct err *err);
must_check int boot_write_pvh_info(struct mem *mem, uint64_t initrd, uint64_t initrd_len, struct err *err);
must_check int boot_write_tables(struct mem *mem, enum boot_protocol protocol, struct err *err);
