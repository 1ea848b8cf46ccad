/* Private to snapshot*.c; in a fiber, lock held. */
#pragma once

#include "block/qcow2/qcow2.h"
#include "block/qcow2/qcow2_impl.h"

/* Bytes that the table takes in the file. */
uint64_t snapshot_table_len(const struct qcow2_snapshots *snapshots);
/* Writes the table anew and makes it valid; the old one had `old_len` bytes. */
int snapshot_table_store(struct qcow2 *q, const struct qcow2_snapshots *snapshots, uint64_t old_len);
/* In a fiber, while it is opened read-only: the disk becomes what it was at the snapshot. */
int snapshot_view(struct qcow2 *q, const char *name, struct err *err);
