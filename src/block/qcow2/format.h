/* qcow2 on disk (docs/interop/qcow2 of QEMU): numbers are big-endian. */
#pragma once

#include <stdint.h>

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_V2_HEADER_LEN 72u
#define QCOW2_V3_HEADER_LEN 104u
#define QCOW2_HEADER_LEN 112u /* with the compression type: what is written */

/* offsets in the header */
#define H_VERSION 4
#define H_BACKING_OFFSET 8
#define H_BACKING_LEN 16
#define H_CLUSTER_BITS 20
#define H_SIZE 24
#define H_CRYPT 32
#define H_L1_SIZE 36
#define H_L1_OFFSET 40
#define H_REFTABLE_OFFSET 48
#define H_REFTABLE_CLUSTERS 56
#define H_SNAPSHOT_COUNT 60
#define H_SNAPSHOT_OFFSET 64
#define H_INCOMPATIBLE 72
#define H_COMPATIBLE 80
#define H_AUTOCLEAR 88
#define H_REFCOUNT_ORDER 96
#define H_HEADER_LEN 100
#define H_COMPRESSION 104

#define INCOMPATIBLE_DIRTY 1u
#define INCOMPATIBLE_CORRUPT 2u
#define INCOMPATIBLE_DATA_FILE 4u
#define INCOMPATIBLE_COMPRESSION 8u
#define INCOMPATIBLE_EXTENDED_L2 16u
#define INCOMPATIBLE_KNOWN 31u
#define COMPATIBLE_LAZY_REFCOUNTS 1u
#define AUTOCLEAR_BITMAPS 1u
#define AUTOCLEAR_DATA_RAW 2u

#define EXTENSION_END 0u
#define EXTENSION_BACKING_FORMAT 0xe2792acau
#define EXTENSION_FEATURE_NAMES 0x6803f857u
#define EXTENSION_BITMAPS 0x23852875u
#define EXTENSION_CRYPT 0x0537be77u
#define EXTENSION_DATA_FILE 0x44415441u
#define FEATURE_NAME_LEN 46u

#define ENTRY_COPIED (UINT64_C(1) << 63)
#define ENTRY_COMPRESSED (UINT64_C(1) << 62)
#define ENTRY_ZERO UINT64_C(1)
#define ENTRY_OFFSET UINT64_C(0x00fffffffffffe00)
#define REFTABLE_OFFSET UINT64_C(0xfffffffffffffe00)
#define SUBCLUSTERS 32u

/* Bounds on what an image may ask for; QEMU's are the same, so no image of its is refused. */
#define CLUSTER_BITS_MIN 9u
#define CLUSTER_BITS_MAX 21u
#define L1_BYTES_MAX (UINT32_C(32) << 20)
#define REFTABLE_BYTES_MAX (UINT32_C(8) << 20)
#define SNAPSHOTS_MAX 65536u
#define SNAPSHOT_TABLE_BYTES_MAX (UINT32_C(64) << 20)
#define SNAPSHOT_EXTRA_MAX 1024u
#define NAME_MAX_LEN 1023u
#define CHAIN_MAX 64u

#define BITMAPS_MAX 65535u
#define BITMAP_DIRECTORY_BYTES_MAX (UINT32_C(64) << 20)
#define BITMAP_GRANULARITY_BITS_MIN 9u
#define BITMAP_GRANULARITY_BITS_MAX 31u
/* Ours: in memory, of one bitmap (32 TiB with the usual granularity of 64 KiB) and of all that are in use. */
#define BITMAP_BYTES_MAX (UINT64_C(64) << 20)
#define BITMAPS_BYTES_MAX (UINT64_C(256) << 20)

/* a bitmap directory's entry */
#define BITMAP_ENTRY_LEN 24u
#define BITMAP_IN_USE 1u /* a writer has the image, or had it and did not store the bitmap */
#define BITMAP_AUTO 2u   /* enabled: records writes */
#define BITMAP_EXTRA_COMPATIBLE 4u
#define BITMAP_FLAGS_KNOWN 7u
#define BITMAP_TYPE_DIRTY 1u
/* a bitmap table's entry */
#define BITMAP_ALL_ONES UINT64_C(1)

#define COMPRESSION_ZLIB 0u
#define COMPRESSION_ZSTD 1u
