/* ELF kernels: PT_LOAD segments go to their physical addresses; a Xen PVH note names the 32-bit entry, otherwise the ELF entry
 * is Linux's 64-bit one. */
#include "vmm/boot/boot_impl.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"

#define NOTE_PVH_ENTRY 18u /* XEN_ELFNOTE_PHYS32_ENTRY */
#define LINUX_CMDLINE_MAX 2047
#define PROGRAM_HEADERS_MAX 128

static int check_header(const struct image *image, Elf64_Ehdr *ret_header, struct err *err)
{
    const uint8_t *at = image_at(image, 0, sizeof *ret_header);
    if (!at)
        return err_say(err, ENOEXEC, "the ELF file ends within its header, it is damaged");
    memcpy(ret_header, at, sizeof *ret_header);
    if (ret_header->e_ident[EI_CLASS] != ELFCLASS64 || ret_header->e_ident[EI_DATA] != ELFDATA2LSB ||
        ret_header->e_machine != EM_X86_64)
        return err_say(err, ENOEXEC, "an ELF file of another kind, give a kernel for x86-64");
    if (ret_header->e_type != ET_EXEC && ret_header->e_type != ET_DYN)
        return err_say(err, ENOEXEC, "an ELF file that is not executable, give a vmlinux or bzImage");
    if (ret_header->e_phentsize != sizeof(Elf64_Phdr) || !ret_header->e_phnum ||
        ret_header->e_phnum > PROGRAM_HEADERS_MAX ||
        !image_at(image, ret_header->e_phoff, (uint64_t)ret_header->e_phnum * sizeof(Elf64_Phdr)))
        return err_say(err, ENOEXEC, "the ELF program headers are not in the file, it is damaged");
    return 0;
}

static int load_segment(struct mem *mem, const struct image *image, const Elf64_Phdr *segment, struct err *err)
{
    const uint8_t *from = image_at(image, segment->p_offset, segment->p_filesz);
    if (!from || segment->p_filesz > segment->p_memsz)
        return err_say(err, ENOEXEC, "an ELF segment is not in the file, it is damaged or cut short");
    if (segment->p_paddr < BOOT_HIGH_START)
        return err_say(err, ENOEXEC, "an ELF segment loads at 0x%llx; below 1 MiB is the boot data's",
                       (unsigned long long)segment->p_paddr);
    uint8_t *to = mem_ptr(mem, segment->p_paddr, segment->p_memsz);
    if (!to)
        return err_say(err, ENOMEM, "the kernel needs memory at 0x%llx (%llu KiB), give more with --memory",
                       (unsigned long long)segment->p_paddr, (unsigned long long)segment->p_memsz >> 10);
    memcpy(to, from, segment->p_filesz);
    memset(to + segment->p_filesz, 0, segment->p_memsz - segment->p_filesz);
    mem_mark_dirty(mem, segment->p_paddr, segment->p_memsz);
    return 0;
}

/* Looks through one PT_NOTE segment; true when the PVH entry is in it. Each note is 12 bytes of header, name and
 * description, both padded to 4 bytes. */
static bool find_pvh_entry(const struct image *notes, uint64_t *ret_entry)
{
    uint64_t at = 0;
    for (;;) {
        const uint8_t *header = image_at(notes, at, 12);
        if (!header)
            return false;
        uint64_t name_len = load_le32(header), desc_len = load_le32(header + 4);
        uint64_t desc_at = at + 12 + ((name_len + 3) & ~UINT64_C(3));
        const uint8_t *name = image_at(notes, at + 12, name_len), *desc = image_at(notes, desc_at, desc_len);
        if (!name || !desc)
            return false;
        if (load_le32(header + 8) == NOTE_PVH_ENTRY && name_len == 4 && !memcmp(name, "Xen", 4) && desc_len >= 4) {
            *ret_entry = desc_len >= 8 ? load_le64(desc) : load_le32(desc);
            return true;
        }
        at = desc_at + ((desc_len + 3) & ~UINT64_C(3));
    }
}

static void note_extent(const Elf64_Phdr *segment, struct boot_start *start)
{
    if (segment->p_paddr < start->kernel_start)
        start->kernel_start = segment->p_paddr;
    if (segment->p_paddr + segment->p_memsz > start->kernel_end)
        start->kernel_end = segment->p_paddr + segment->p_memsz;
}

int boot_load_elf(struct mem *mem, const struct image *image, struct boot_start *ret_start, struct err *err)
{
    Elf64_Ehdr header;
    int r = check_header(image, &header, err);
    if (r < 0)
        return r;
    struct boot_start start = {.protocol = BOOT_LINUX64,
                               .entry = header.e_entry,
                               .kernel_start = UINT64_MAX,
                               .initrd_max = UINT32_MAX,
                               .cmdline_max = LINUX_CMDLINE_MAX};
    for (unsigned i = 0; r == 0 && i < header.e_phnum; i++) {
        Elf64_Phdr segment;
        memcpy(&segment, image->data + header.e_phoff + i * sizeof segment, sizeof segment);
        const uint8_t *bytes = image_at(image, segment.p_offset, segment.p_filesz);
        struct image notes = {.data = bytes, .held = bytes ? segment.p_filesz : 0, .fd = -1};
        if (segment.p_type == PT_NOTE && bytes && find_pvh_entry(&notes, &start.entry))
            start.protocol = BOOT_PVH;
        if (segment.p_type != PT_LOAD || !segment.p_memsz)
            continue;
        r = load_segment(mem, image, &segment, err);
        if (r == 0)
            note_extent(&segment, &start);
    }
    if (r < 0)
        return r;
    if (start.entry < start.kernel_start || start.entry >= start.kernel_end)
        return err_say(err, ENOEXEC, "the ELF entry 0x%llx is in no segment, the file is damaged or no kernel",
                       (unsigned long long)start.entry);
    *ret_start = start;
    return 0;
}
