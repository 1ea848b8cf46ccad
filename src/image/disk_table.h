/* The partitions of a disk: GPT (UEFI 2.10 §5.3) or MBR with its logical partitions. What the disk says is foreign. */
#pragma once

#include <stdint.h>
#include "base/err.h"

#define DISK_PARTITIONS_MAX 128

struct disk_partition {
    unsigned number; /* from 1; 0: the whole disk, which has no table */
    uint64_t offset_bytes, size_bytes;
    char uuid[40]; /* as the kernel takes it in root=PARTUUID=; empty for the whole disk */
};

struct disk_table {
    struct disk_partition partitions[DISK_PARTITIONS_MAX];
    unsigned count;
};

/* Reads the table of the raw disk `fd`; partitions that are not on the disk are left out. A disk without a table is one
 * partition. */
must_check int disk_table_read(int fd, struct disk_table *ret_table, struct err *err);
