/* Loads a kernel into guest memory and tells how the first vCPU starts it.
 *
 * Kernels: Linux bzImage (64-bit entry, else its 32-bit one), ELF with a PVH note (32-bit entry, Xen's hvm_start_info), ELF
 * vmlinux (64-bit Linux entry). The kernel file is foreign bytes: the loaders are pure functions of a buffer and guest
 * memory. Sources: Linux Documentation/arch/x86/boot.rst and zero-page.rst, Xen docs/misc/pvh.pandoc, ELF-64. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "cpu/state.h"
#include "mem/mem.h"

enum boot_protocol { BOOT_LINUX64, BOOT_LINUX32, BOOT_PVH };

/* How the bootstrap processor starts. */
struct boot_start {
    enum boot_protocol protocol;
    uint64_t entry;
    uint64_t kernel_start, kernel_end; /* guest memory the kernel uses from the start on */
    uint64_t initrd_max;               /* last address + 1 that an initrd may use */
    uint32_t cmdline_max;              /* bytes without the final NUL */
};

struct boot_source {
    int kernel_fd, initrd_fd; /* not owned; initrd_fd -1 for none */
    const char *kernel_name, *initrd_name;
    const char *cmdline;      /* "" for none */
};

/* Puts kernel, initrd, command line, memory map and the protocol's structures into `mem`, and the machine's ACPI tables are
 * taken to be at ACPI_RSDP. -ENOEXEC for images of another kind or damaged ones; the message says which. */
must_check int boot_load(struct mem *mem, const struct boot_source *source, struct boot_start *ret_start, struct err *err);
/* Changes a power-on state to what the protocol asks for. */
void boot_set_state(const struct boot_start *start, struct x86_state *state);

/* The loaders, for tests and fuzzing: `image` is the whole file. They write the kernel into `mem`, but not what else
 * boot_load adds; `zero_page` (4096 bytes) gets the setup header of a bzImage. */
must_check int boot_load_image(struct mem *mem, const uint8_t *image, size_t len, uint8_t *zero_page,
                               struct boot_start *ret_start, struct err *err);
