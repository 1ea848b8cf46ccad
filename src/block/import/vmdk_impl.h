/* VMDK (VMware, Virtual Disk Format 5.0): what the two files of the reader share. */
#pragma once

#include "block/import/import.h"

#define VMDK_MAGIC "KDMV"
#define VMDK_DESCRIPTOR_MAX 65536u

/* Adds the sparse extent that is files[file]. */
must_check int vmdk_load_sparse(struct import_node *node, unsigned file, struct err *err);
/* Checks a descriptor (a text; it is changed). With `extents`, opens the files that it names and adds them. */
must_check int vmdk_load_descriptor(struct import_node *node, const struct block_options *options, char *text, bool extents,
                                    struct err *err);
