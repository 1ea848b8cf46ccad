/* VHDX on disk (Microsoft, [MS-VHDX] 8.0): numbers are little-endian. */
#pragma once

#include "block/import/import.h"

struct vhdx_region {
    uint64_t offset;
    uint32_t len; /* 0: not there */
};

struct vhdx_layout {
    struct vhdx_region table, metadata; /* table: the BAT */
    uint32_t block_size, sector_size;
    uint64_t disk_size;
};

/* Reads the current header (refusing what must be replayed first) and the region table. */
must_check int vhdx_read_regions(struct import_node *node, struct vhdx_layout *layout, struct err *err);
must_check int vhdx_read_metadata(struct import_node *node, struct vhdx_layout *layout, struct err *err);
