/* Boot loaders: good images of each kind, every way an image can be bad, and what a kernel finds in memory. */
#include "cmocka_all.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "vmm/boot/boot_impl.h"

#define MIB (UINT64_C(1) << 20)

static struct mem *mem;
static struct err err;
static uint8_t zero_page[4096];
static struct boot_start start;

static int set_up(void **state)
{
    (void)state;
    err = (struct err){0};
    memset(zero_page, 0, sizeof zero_page);
    return mem_create(32 * MIB, false, &mem, &err);
}

static int tear_down(void **state)
{
    (void)state;
    mem_free(mem);
    return 0;
}

static int load(const uint8_t *image, size_t len)
{
    err = (struct err){0};
    return boot_load_image(mem, image, len, zero_page, &start, &err);
}

/* A bzImage of one setup sector and `len` bytes of kernel. */
static void make_bzimage(uint8_t *image, size_t len)
{
    memset(image, 0, 1024);
    memset(image + 1024, 0xab, len);
    image[0x1f1] = 1;
    store_le32(image + 0x1f4, (uint32_t)(len / 16));
    image[0x201] = 0x66;
    memcpy(image + 0x202, "HdrS", 4);
    store_le16(image + 0x206, 0x020f);
    image[0x211] = 1;
    store_le32(image + 0x22c, 0x7fffffff);
    image[0x234] = 1;
    store_le16(image + 0x236, 3);
    store_le32(image + 0x238, 2047);
    store_le64(image + 0x258, 0x1000000);
    store_le32(image + 0x260, (uint32_t)(2 * MIB));
}

static void test_bzimage(void **state)
{
    (void)state;
    static uint8_t image[1024 + 8192];
    make_bzimage(image, 8192);
    assert_int_equal(load(image, sizeof image), 0);
    assert_int_equal(start.protocol, BOOT_LINUX64);
    assert_int_equal(start.entry, MIB + 0x200);
    assert_int_equal(start.kernel_end, 3 * MIB);
    assert_int_equal(start.cmdline_max, 2047);
    assert_memory_equal(mem_ptr(mem, MIB, 8192), image + 1024, 8192);
    assert_memory_equal(zero_page + 0x1f1, image + 0x1f1, 0x264 - 0x1f1);
    assert_int_equal(zero_page[0x1f0], 0);
    store_le16(image + 0x236, 0);
    assert_int_equal(load(image, sizeof image), 0);
    assert_int_equal(start.protocol, BOOT_LINUX32);
    assert_int_equal(start.entry, MIB);
    image[0x234] = 0;
    assert_int_equal(load(image, sizeof image), 0);
    assert_int_equal(start.entry, 16 * MIB);
}

static void refused(const uint8_t *image, size_t len, int code, const char *word)
{
    assert_int_equal(load(image, len), -code);
    assert_non_null(strstr(err.message, word));
}

static void test_bad_bzimage(void **state)
{
    (void)state;
    static uint8_t image[1024 + 8192];
    make_bzimage(image, 8192);
    refused(image, 0x230, ENOEXEC, "damaged");
    refused(image, 1024, ENOEXEC, "damaged");
    refused(image, 4096, ENOEXEC, "cut short");
    store_le16(image + 0x206, 0x0204);
    refused(image, sizeof image, ENOEXEC, "2.04");
    make_bzimage(image, 8192);
    image[0x211] = 0;
    refused(image, sizeof image, ENOEXEC, "zImage");
    make_bzimage(image, 8192);
    store_le32(image + 0x260, UINT32_MAX);
    refused(image, sizeof image, ENOMEM, "--memory");
    store_le32(image + 0x260, (uint32_t)(17 * MIB)); /* from 16 MiB on, where it unpacks itself */
    refused(image, sizeof image, ENOMEM, "needs 34 MiB");
    make_bzimage(image, 8192);
    image[0x234] = 0;
    store_le64(image + 0x258, UINT64_MAX - 4096);
    refused(image, sizeof image, ENOMEM, "--memory");
    store_le64(image + 0x258, 0x1000);
    refused(image, sizeof image, ENOMEM, "--memory");
    refused((const uint8_t *)"#!/bin/sh\n", 10, ENOEXEC, "neither");
    refused(image, 0, ENOEXEC, "neither");
    memset(image, 0xff, sizeof image);
    refused(image, sizeof image, ENOEXEC, "neither");
}

struct elf {
    Elf64_Ehdr header;
    Elf64_Phdr segments[2];
    uint32_t note[6];
    uint8_t code[64];
};

static void make_elf(struct elf *e, bool pvh)
{
    memset(e, 0, sizeof *e);
    memcpy(e->header.e_ident, "\177ELF\2\1\1", 7);
    e->header.e_type = ET_EXEC;
    e->header.e_machine = EM_X86_64;
    e->header.e_entry = 2 * MIB + 16;
    e->header.e_phoff = offsetof(struct elf, segments);
    e->header.e_phentsize = sizeof(Elf64_Phdr);
    e->header.e_phnum = pvh ? 2 : 1;
    e->segments[0] = (Elf64_Phdr){.p_type = PT_LOAD, .p_offset = offsetof(struct elf, code), .p_paddr = 2 * MIB,
                                  .p_filesz = 64, .p_memsz = 8192};
    e->segments[1] = (Elf64_Phdr){.p_type = PT_NOTE, .p_offset = offsetof(struct elf, note), .p_filesz = 20};
    e->note[0] = 4, e->note[1] = 4, e->note[2] = 18;
    memcpy(&e->note[3], "Xen", 4);
    e->note[4] = 2 * (uint32_t)MIB + 32;
    memset(e->code, 0x90, sizeof e->code);
}

static int load_elf(const struct elf *e)
{
    return load((const uint8_t *)e, sizeof *e);
}

static void test_elf(void **state)
{
    (void)state;
    struct elf e;
    make_elf(&e, false);
    memset(mem_ptr(mem, 2 * MIB, 8192), 0xee, 8192);
    assert_int_equal(load_elf(&e), 0);
    assert_int_equal(start.protocol, BOOT_LINUX64);
    assert_int_equal(start.entry, 2 * MIB + 16);
    assert_int_equal(start.kernel_start, 2 * MIB);
    assert_int_equal(start.kernel_end, 2 * MIB + 8192);
    const uint8_t *loaded = mem_ptr(mem, 2 * MIB, 8192);
    assert_int_equal(loaded[63], 0x90);
    assert_int_equal(loaded[64], 0);
    assert_int_equal(loaded[8191], 0);
    make_elf(&e, true);
    assert_int_equal(load_elf(&e), 0);
    assert_int_equal(start.protocol, BOOT_PVH);
    assert_int_equal(start.entry, 2 * MIB + 32);
}

static void test_bad_elf(void **state)
{
    (void)state;
    struct elf e;
    make_elf(&e, false);
    refused((uint8_t *)&e, 40, ENOEXEC, "damaged");
    refused((uint8_t *)&e, sizeof e.header + 10, ENOEXEC, "damaged");
    refused((uint8_t *)&e, offsetof(struct elf, code) + 10, ENOEXEC, "cut short");
    e.header.e_machine = EM_AARCH64;
    refused((uint8_t *)&e, sizeof e, ENOEXEC, "x86-64");
    make_elf(&e, false);
    e.header.e_type = ET_REL;
    refused((uint8_t *)&e, sizeof e, ENOEXEC, "not executable");
    make_elf(&e, false);
    e.segments[0].p_offset = UINT64_MAX - 10;
    refused((uint8_t *)&e, sizeof e, ENOEXEC, "damaged");
    make_elf(&e, false);
    e.segments[0].p_filesz = 9000;
    refused((uint8_t *)&e, sizeof e, ENOEXEC, "damaged");
    make_elf(&e, false);
    e.segments[0].p_paddr = 0x1000;
    refused((uint8_t *)&e, sizeof e, ENOEXEC, "1 MiB");
    make_elf(&e, false);
    e.segments[0].p_memsz = UINT64_MAX;
    refused((uint8_t *)&e, sizeof e, ENOMEM, "--memory");
    make_elf(&e, false);
    e.segments[0].p_paddr = UINT64_MAX - 4095;
    refused((uint8_t *)&e, sizeof e, ENOMEM, "--memory");
    make_elf(&e, false);
    e.header.e_entry = 5;
    refused((uint8_t *)&e, sizeof e, ENOEXEC, "entry");
    make_elf(&e, false);
    e.header.e_phoff = UINT64_MAX - 8;
    refused((uint8_t *)&e, sizeof e, ENOEXEC, "program headers");
    make_elf(&e, true);
    e.note[0] = e.note[1] = UINT32_MAX; /* a note that never ends is none */
    assert_int_equal(load_elf(&e), 0);
    assert_int_equal(start.protocol, BOOT_LINUX64);
}

static int file_of(const void *data, size_t len)
{
    int fd = memfd_create("boot-test", 0);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), len);
    return fd;
}

static void test_whole_boot(void **state)
{
    (void)state;
    struct elf e;
    make_elf(&e, true);
    static uint8_t initrd[10000];
    memset(initrd, 0x77, sizeof initrd);
    struct boot_source source = {.kernel_fd = file_of(&e, sizeof e), .initrd_fd = file_of(initrd, sizeof initrd),
                                 .kernel_name = "k", .initrd_name = "i", .cmdline = "hello world"};
    assert_int_equal(boot_load(mem, &source, &start, &err), 0);
    struct x86_state state_of = {0};
    boot_set_state(&start, &state_of);
    assert_int_equal(state_of.rip, 2 * MIB + 32);
    assert_int_equal(state_of.cr0 & (CR0_PE | CR0_PG), CR0_PE);
    assert_int_equal(state_of.segment[SEG_CS].attributes & (SEG_ATTR_L | SEG_ATTR_DB), SEG_ATTR_DB);
    const uint8_t *info = mem_ptr(mem, state_of.gpr[RBX], 56);
    assert_int_equal(load_le32(info), 0x336ec578);
    assert_string_equal((char *)mem_ptr(mem, load_le64(info + 24), 12), "hello world");
    assert_int_equal(load_le32(info + 12), 1);
    const uint8_t *module = mem_ptr(mem, load_le64(info + 16), 32);
    assert_int_equal(load_le64(module + 8), sizeof initrd);
    assert_memory_equal(mem_ptr(mem, load_le64(module), sizeof initrd), initrd, sizeof initrd);
    uint64_t ram = 0;
    for (unsigned i = 0; i < load_le32(info + 48); i++) {
        const uint8_t *range = mem_ptr(mem, load_le64(info + 40) + i * 24, 24);
        if (load_le32(range + 16) == 1)
            ram += load_le64(range + 8);
    }
    assert_int_equal(ram, 32 * MIB - MIB + BOOT_LOW_END);
    close(source.initrd_fd);
    source.initrd_fd = file_of("", 0);
    assert_int_equal(boot_load(mem, &source, &start, &err), -ENOEXEC);
    source.initrd_fd = -1;
    static char longline[3000];
    memset(longline, 'x', sizeof longline - 1);
    source.cmdline = longline;
    assert_int_equal(boot_load(mem, &source, &start, &err), -E2BIG);
    close(source.kernel_fd);
}

static void test_linux_boot(void **state)
{
    (void)state;
    static uint8_t image[1024 + 8192];
    make_bzimage(image, 8192);
    struct boot_source source = {.kernel_fd = file_of(image, sizeof image), .initrd_fd = -1, .kernel_name = "k",
                                 .cmdline = "console=ttyS0"};
    assert_int_equal(boot_load(mem, &source, &start, &err), 0);
    struct x86_state state_of = {0};
    boot_set_state(&start, &state_of);
    assert_int_equal(state_of.efer & EFER_LMA, EFER_LMA);
    const uint8_t *page = mem_ptr(mem, state_of.gpr[RSI], 4096);
    assert_string_equal((char *)mem_ptr(mem, load_le32(page + 0x228), 14), "console=ttyS0");
    assert_int_equal(load_le64(page + 0x70), 0xe0000);
    assert_int_equal(page[0x210], 0xff);
    /* The identity mapping covers the entry. */
    uint64_t table = state_of.cr3, at = state_of.rip;
    for (unsigned shift = 39; shift > 21; shift -= 9)
        table = load_le64(mem_ptr(mem, (table & ~UINT64_C(0xfff)) + (at >> shift & 511) * 8, 8));
    uint64_t entry = load_le64(mem_ptr(mem, (table & ~UINT64_C(0xfff)) + (at >> 21 & 511) * 8, 8));
    assert_int_equal(entry & ~UINT64_C(0x1fffff), at & ~UINT64_C(0x1fffff));
    close(source.kernel_fd);
    int initrd = memfd_create("big", 0);
    assert_int_equal(ftruncate(initrd, (off_t)(64 * MIB)), 0);
    source.kernel_fd = file_of(image, sizeof image);
    source.initrd_fd = initrd;
    source.initrd_name = "big";
    assert_int_equal(boot_load(mem, &source, &start, &err), -ENOMEM);
    close(initrd);
    close(source.kernel_fd);
}

#define WITH_MEMORY(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {WITH_MEMORY(test_bzimage), WITH_MEMORY(test_bad_bzimage), WITH_MEMORY(test_elf),
                                       WITH_MEMORY(test_bad_elf), WITH_MEMORY(test_whole_boot),  WITH_MEMORY(test_linux_boot)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
