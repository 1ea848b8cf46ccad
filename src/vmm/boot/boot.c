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
#define HEAD_BYTES 4096u /* the setup header of a bzImage is in it */

static bool is_elf(const struct image *image)
{
    const uint8_t *magic = image_at(image, 0, 4);
    return magic && !memcmp(magic, "\177ELF", 4);
}

static int load_image(struct mem *mem, const struct image *image, uint8_t *zero_page, struct boot_start *ret_start, struct err *err)
{
    if (is_elf(image))
        return boot_load_elf(mem, image, ret_start, err);
    const uint8_t *setup = image_at(image, BZIMAGE_MAGIC_OFFSET, 4);
    if (setup && !memcmp(setup, "HdrS", 4))
        return boot_load_bzimage(mem, image, zero_page, ret_start, err);
    return err_say(err, ENOEXEC, "neither a bzImage nor an ELF kernel, give the file that /boot/vmlinuz names");
}

int boot_load_image(struct mem *mem, const uint8_t *data, size_t len, uint8_t *zero_page, struct boot_start *ret_start,
                    struct err *err)
{
    return load_image(mem, &(struct image){.data = data, .held = len, .len = len, .fd = -1}, zero_page, ret_start, err);
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

static int read_all(int fd, uint64_t offset, uint8_t *data, uint64_t len, struct err *err)
{
    for (uint64_t done = 0; done < len;) {
        ssize_t n = pread(fd, data + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, errno, "read");
        if (n == 0)
            return err_say(err, EIO, "became shorter while it was read");
        done += (uint64_t)n;
    }
    return 0;
}

int image_copy(const struct image *image, uint64_t offset, uint64_t len, uint8_t *to, struct err *err)
{
    if (image->fd >= 0)
        return read_all(image->fd, offset, to, len, err);
    memcpy(to, image->data + offset, len);
    return 0;
}

/* A copy, not a mapping: a file that shrinks while mapped would kill us. */
static int load_whole(struct mem *mem, int fd, uint64_t len, uint8_t *zero_page, struct boot_start *ret_start, struct err *err)
{
    uint8_t *data = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return err_set(err, errno, "memory for the file");
    int r = read_all(fd, 0, data, len, err);
    if (r == 0)
        r = boot_load_image(mem, data, len, zero_page, ret_start, err);
    munmap(data, len);
    return r;
}

/* A bzImage is read straight into guest memory: where memory is new to the host too, touching a copy of 14 MiB takes longer than
 * the kernel's own decompression. */
static int load_file(struct mem *mem, int fd, uint64_t len, uint8_t *zero_page, struct boot_start *ret_start, struct err *err)
{
    uint8_t head[HEAD_BYTES];
    size_t held = len < sizeof head ? len : sizeof head;
    int r = read_all(fd, 0, head, held, err);
    if (r < 0)
        return r;
    struct image image = {.data = head, .held = held, .len = len, .fd = fd};
    return is_elf(&image) ? load_whole(mem, fd, len, zero_page, ret_start, err) : load_image(mem, &image, zero_page, ret_start, err);
}

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
    r = load_file(mem, source->kernel_fd, len, zero_page, ret_start, err);
    return r < 0 ? err_ctx(err, "kernel '%s'", source->kernel_name) : 0;
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
    r = read_all(source->initrd_fd, 0, mem_ptr(mem, gpa, len), len, err);
    if (r < 0)
        return err_ctx(err, "initrd '%s'", source->initrd_name);
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
    struct boot_start start = {0};
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
