/* A disk's partition table: whatever it says, partitions lie on the disk. */
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "image/disk_table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct disk_table table;
    int disk = memfd_create("disk", MFD_CLOEXEC);
    if (disk < 0 || write(disk, data, size) != (ssize_t)size)
        abort();
    struct err err = {0};
    int r = disk_table_read(disk, &table, &err);
    for (unsigned i = 0; r == 0 && i < table.count; i++)
        if (table.partitions[i].offset_bytes > size || table.partitions[i].size_bytes > size - table.partitions[i].offset_bytes)
            abort();
    if (r < 0 && !err.message[0])
        abort();
    close(disk);
    return 0;
}
