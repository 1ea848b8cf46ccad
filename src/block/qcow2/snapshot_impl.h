/* Private to snapshot*.c; in a fiber, lock held. */
#pragma once

#include "block/qcow2/qcow2.h"
#include "block/qcow2/qcow2_impl.h"

/* Bytes that the table takes in the file. */
uint64_t snapshot_table_len(const struct qcow2_snapshots *snapshots);
/* Writes the table anew, to where nothing names it yet. */
int snapshot_table_write(struct qcow2 *q, const struct qcow2_snapshots *snapshots, uint64_t *ret_offset);
/* Makes everything stable, then the header name that table, then the old one, of `old_len` bytes, free. */
int snapshot_table_switch(struct qcow2 *q, const struct qcow2_snapshots *snapshots, uint64_t offset, uint64_t old_len);
/* In a fiber, while it is opened read-only: the disk becomes what it was at the snapshot. */
int snapshot_view(struct qcow2 *q, const char *name, struct err *err);
