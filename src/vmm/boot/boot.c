/* Puts the pieces together: reads the files, picks the loader, places the initrd, writes the protocol's structures. */
#include "vmm/boot/boot_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"

#define KERNEL_FILE_MAX (UINT64_C(1) << 30)
#define BZIMAGE_MAGIC_OFFSET 0x202u

int boot_load_image(struct mem *mem, const uint8_t *data, size_t len, uint8_t *zero_page, struct boot_start *ret_start,
                    struct err *err)
{
    struct image image = {data, len};
    const uint8_t *magic = image_at(&image, 0, 4), *setup = image_at(&image, BZIMAGE_MAGIC_OFFSET, 4);
    if (magic && !memcmp(magic, "\177ELF", 4))
        return boot_load_elf(mem, &image, ret_start, err);
    if (setup && !memcmp(setup, "HdrS", 4))
        return boot_load_bzimage(mem, &image, zero_page, ret_start, err);
    return err_say(err, ENOEXEC, "neither a bzImage nor an ELF kernel, give the file that /boot/vmlinuz names");
}

static int file_size(int fd, const char *what, const char *name, uint64_t *ret_size, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_set(err, errno, "%s '%s'", what, name);
    if (!S_ISREG(st.st_mode) || !st.st_size)
        return err_say(err, ENOEXEC, "%s '%s': empty or not a regular file, give another one", what, name);
    *ret_size = (uint64_t)st.st_size;
    return 0;
}

static int read_all(int fd, const char *what, const char *name, uint8_t *data, uint64_t len, struct err *err)
{
    for (uint64_t done = 0; done < len;) {
        ssize_t n = pread(fd, data + done, len - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, errno, "%s '%s'", what, name);
        if (n == 0)
            return err_say(err, EIO, "%s '%s': became shorter while it was read", what, name);
        done += (uint64_t)n;
    }
    return 0;
}

/* The file is copied, not mapped: a file that shrinks while mapped would kill us. */
static int load_kernel(struct mem *mem, const struct boot_source *source, uint8_t *zero_page, struct boot_start *ret_start,
                       struct err *err)
{
    uint64_t len;
    int r = file_size(source->kernel_fd, "kernel", source->kernel_name, &len, err);
    if (r < 0)
        return r;
    if (len > KERNEL_FILE_MAX)
        return err_say(err, EFBIG, "kernel '%s': %llu MiB is too large for a kernel", source->kernel_name,
                       (unsigned long long)len >> 20);
    uint8_t *data = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return err_set(err, errno, "kernel '%s'", source->kernel_name);
    r = read_all(source->kernel_fd, "kernel", source->kernel_name, data, len, err);
    if (r == 0 && (r = boot_load_image(mem, data, len, zero_page, ret_start, err)) < 0)
        err_ctx(err, "kernel '%s'", source->kernel_name);
    munmap(data, len);
    return r;
}

/* As high in low memory as the kernel allows, out of the way of its decompression. */
static int load_initrd(struct mem *mem, const struct boot_source *source, const struct boot_start *start,
                       uint64_t *ret_gpa, uint64_t *ret_len, struct err *err)
{
    *ret_gpa = *ret_len = 0;
    if (source->initrd_fd < 0)
        return 0;
    uint64_t len;
    int r = file_size(source->initrd_fd, "initrd", source->initrd_name, &len, err);
    if (r < 0)
        return r;
    uint64_t end = mem_slot(mem, 0)->len;
    if (end > start->initrd_max)
        end = start->initrd_max;
    uint64_t gpa = len > end ? 0 : (end - len) & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    if (gpa < start->kernel_end)
        return err_say(err, ENOMEM, "initrd '%s': %llu MiB do not fit beside the kernel, give more with --memory",
                       source->initrd_name, (unsigned long long)(len + (1 << 20) - 1) >> 20);
    r = read_all(source->initrd_fd, "initrd", source->initrd_name, mem_ptr(mem, gpa, len), len, err);
    if (r < 0)
        return r;
    mem_mark_dirty(mem, gpa, len);
    *ret_gpa = gpa;
    *ret_len = len;
    return 0;
}

static int write_cmdline(struct mem *mem, const char *cmdline, const struct boot_start *start, struct err *err)
{
    size_t len = strlen(cmdline), limit = start->cmdline_max < BOOT_CMDLINE_MAX ? start->cmdline_max : BOOT_CMDLINE_MAX;
    if (len > limit)
        return err_say(err, E2BIG, "the kernel command line has %zu characters, this kernel takes at most %zu", len, limit);
    int r = mem_write(mem, BOOT_CMDLINE, cmdline, len + 1);
    return r < 0 ? err_set(err, -r, "kernel command line") : 0;
}

int boot_load(struct mem *mem, const struct boot_source *source, struct boot_start *ret_start, struct err *err)
{
    uint8_t zero_page[4096] = {0};
    struct boot_start start;
    uint64_t initrd = 0, initrd_len = 0;
    int r = load_kernel(mem, source, zero_page, &start, err);
    if (r == 0)
        r = load_initrd(mem, source, &start, &initrd, &initrd_len, err);
    if (r == 0)
        r = write_cmdline(mem, source->cmdline, &start, err);
    if (r == 0)
        r = boot_write_tables(mem, start.protocol, err);
    if (r == 0)
        r = start.protocol == BOOT_PVH ? boot_write_pvh_info(mem, initrd, initrd_len, err)
                                       : boot_write_zero_page(mem, zero_page, initrd, initrd_len, err);
    if (r == 0)
        *ret_start = start;
    return r;
}
