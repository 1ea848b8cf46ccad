/* cpu: what a CPU does in user mode, as small kernels. */
#include <string.h>

#include "kernels.h"

int main(int argc, char **argv)
{
    static struct kernel all[128];
    const struct {
        const struct kernel *kernels;
        size_t count;
    } groups[] = {
        {kernels_integer, kernels_integer_count}, {kernels_control, kernels_control_count},
        {kernels_memory, kernels_memory_count},   {kernels_string, kernels_string_count},
        {kernels_float, kernels_float_count},     {kernels_vector, kernels_vector_count},
    };
    (void)argc;
    size_t count = 0;
    for (size_t g = 0; g < KERNEL_COUNT(groups); g++) {
        if (count + groups[g].count > KERNEL_COUNT(all))
            harness_fail("too many kernels");
        memcpy(all + count, groups[g].kernels, groups[g].count * sizeof *all);
        count += groups[g].count;
    }
    return harness_main(all, count, argv);
}
