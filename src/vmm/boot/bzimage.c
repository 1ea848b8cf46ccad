/* Linux bzImage: the setup header says where the protected-mode part starts and what it can do. */
#include "vmm/boot/boot_impl.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"

#define SECTOR 512u
#define HEADER_START 0x1f1u
#define SETUP_SECTORS 0x1f1u
#define SYSTEM_SIZE 0x1f4u
#define HEADER_JUMP 0x201u
#define HEADER_MAGIC 0x202u
#define VERSION 0x206u
#define LOAD_FLAGS 0x211u
#define INITRD_MAX 0x22cu
#define KERNEL_ALIGNMENT 0x230u
#define RELOCATABLE 0x234u
#define XLOAD_FLAGS 0x236u
#define CMDLINE_SIZE 0x238u
#define PREF_ADDRESS 0x258u
#define INIT_SIZE 0x260u
#define HEADER_MIN 0x264u /* as of protocol 2.10 */
#define HEADER_END_MAX 0x290u

#define LOADED_HIGH 0x01
#define XLF_KERNEL_64 0x0001
#define XLF_CAN_BE_ABOVE_4G 0x0002
#define ENTRY_64 0x200u
#define PROTOCOL_2_10 0x020a
#define PROTOCOL_2_12 0x020c

static uint64_t load_address(const uint8_t *header)
{
    if (header[RELOCATABLE])
        return BOOT_HIGH_START;
    return load_le64(header + PREF_ADDRESS);
}

static int check_header(const struct image *image, struct err *err)
{
    const uint8_t *header = image_at(image, 0, HEADER_MIN);
    if (!header)
        return err_say(err, ENOEXEC, "the bzImage ends within its setup header, it is damaged");
    unsigned version = load_le16(header + VERSION);
    if (version < PROTOCOL_2_10)
        return err_say(err, ENOEXEC, "boot protocol %u.%02u is too old, give a Linux kernel from 2.6.31 on",
                       version >> 8, version & 0xff);
    if (!(header[LOAD_FLAGS] & LOADED_HIGH))
        return err_say(err, ENOEXEC, "a zImage that loads below 1 MiB cannot boot here, give a bzImage");
    return 0;
}

static void copy_header(const struct image *image, uint8_t *zero_page)
{
    unsigned end = HEADER_MAGIC + image->data[HEADER_JUMP];
    if (end < HEADER_MIN)
        end = HEADER_MIN;
    if (end > HEADER_END_MAX)
        end = HEADER_END_MAX;
    if (end > image->held)
        end = (unsigned)image->held;
    memcpy(zero_page + HEADER_START, image->data + HEADER_START, end - HEADER_START);
}

int boot_load_bzimage(struct mem *mem, const struct image *image, uint8_t *zero_page, struct boot_start *ret_start,
                      struct err *err)
{
    int r = check_header(image, err);
    if (r < 0)
        return r;
    const uint8_t *header = image->data;
    unsigned sectors = header[SETUP_SECTORS] ? header[SETUP_SECTORS] : 4;
    size_t offset = (size_t)(sectors + 1) * SECTOR;
    if (offset + ENTRY_64 >= image->len)
        return err_say(err, ENOEXEC, "the bzImage ends within its setup code, it is damaged");
    /* Of the kernel alone by the letter; memtest86+ counts the whole file. */
    if (image->len < (uint64_t)load_le32(header + SYSTEM_SIZE) * 16)
        return err_say(err, ENOEXEC, "the bzImage is shorter than its header says, it is damaged or cut short");
    uint64_t at = load_address(header), preferred = load_le64(header + PREF_ADDRESS), need = load_le32(header + INIT_SIZE);
    size_t len = image->len - offset;
    if (need < len)
        need = len;
    uint64_t unpacks_at = at > preferred ? at : preferred; /* one that can be anywhere does not go below */
    uint8_t *to = at < BOOT_HIGH_START || !mem_ptr(mem, unpacks_at, need) ? NULL : mem_ptr(mem, at, need);
    if (!to)
        return err_say(err, ENOMEM, "the kernel needs %llu MiB of memory to start, give more with --memory",
                       ((unsigned long long)(unpacks_at + need) >> 20) + 1);
    r = image_copy(image, offset, len, to, err);
    if (r < 0)
        return r;
    mem_mark_dirty(mem, at, len);
    copy_header(image, zero_page);
    bool is_64 = load_le16(header + VERSION) >= PROTOCOL_2_12 && (load_le16(header + XLOAD_FLAGS) & XLF_KERNEL_64);
    *ret_start = (struct boot_start){
        .protocol = is_64 ? BOOT_LINUX64 : BOOT_LINUX32,
        .entry = is_64 ? at + ENTRY_64 : at,
        .kernel_start = at,
        .kernel_end = at + need,
        /* Kernels that can lie above 4 GiB take the initrd anywhere; others name the last usable byte. */
        .initrd_max = is_64 && (load_le16(header + XLOAD_FLAGS) & XLF_CAN_BE_ABOVE_4G)
                          ? UINT32_MAX
                          : (uint64_t)load_le32(header + INITRD_MAX) + 1,
        .cmdline_max = load_le32(header + CMDLINE_SIZE),
    };
    return 0;
}
