/* Fuzz target: kernel images. Whatever the file holds, what the loader accepts lies in guest memory. */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/boot/boot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct mem *mem;
    uint8_t zero_page[4096];
    struct boot_start start;
    struct err err = {0};
    if (!mem && mem_create(UINT64_C(32) << 20, false, &mem, &err) < 0)
        return 0;
    if (boot_load_image(mem, data, size, zero_page, &start, &err) < 0) {
        assert(err.code && *err.message);
        return 0;
    }
    assert(start.entry >= start.kernel_start && start.entry < start.kernel_end);
    assert(start.kernel_end <= mem_size(mem));
    return 0;
}
