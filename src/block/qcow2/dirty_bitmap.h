/* Private to qcow2: persistent dirty bitmaps (the format's bitmaps extension).
 *
 * An enabled bitmap (flag AUTO) records which granules of the disk were written. From the moment an image is opened for writing,
 * enabled bitmaps are marked as in use in the file; what they record is in memory and is stored when the image is closed,
 * which takes the mark away. A bitmap that a writer left in use may have missed something: it is kept and can only be
 * removed. The same goes for what is not understood (other types, extra data, sizes beyond our bounds). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define BITMAP_EXTENSION_LEN 24u /* count, 4 zeroes, the directory's length and offset */

struct qcow2;
struct block_node;

struct dirty_bitmap {
    char *name;
    uint32_t flags; /* as read; IN_USE of our own marks is not in here */
    uint8_t type, granularity_bits;
    uint64_t table_offset; /* in the file; 0: nothing is stored yet, and reads as zeroes */
    uint32_t table_size;
    uint8_t *extra; /* as stored */
    uint32_t extra_len;
    uint8_t *bits; /* as in the file: bit n%8 of byte n/8 is granule n's; NULL: not loaded */
    uint64_t bit_count;
    bool changed; /* bits are not those of the file */
    uint8_t *resized; /* while the disk's size changes: room for the bits of the other size */
    uint64_t resized_count;
};

struct dirty_bitmap_table {
    uint64_t offset;
    uint32_t size;
};

struct dirty_bitmaps {
    struct dirty_bitmap *list;
    uint32_t count;
    uint64_t directory, directory_len; /* in the file */
    bool damaged;                      /* the directory could not be read: `list` is empty */
    bool changed;                      /* the directory must be written anew */
    bool in_use;                       /* the file calls some in use: close stores them */
    bool resizing;                     /* they are of one size and the disk perhaps of another: all are in use */
    uint64_t bytes;                    /* of all bits in memory */
    struct dirty_bitmap_table *unused; /* tables whose clusters become free when the directory no longer names them */
    unsigned unused_count;
};

/* ---- dirty_bitmap.c ---- */
/* A guest's change of a range that is inside the disk. */
void dirty_bitmaps_mark(struct qcow2 *q, uint64_t offset, uint64_t len);
int dirty_bitmap_status(struct block_node *node, const char *name, uint64_t offset, uint64_t len, uint64_t *ret_len,
                        bool *ret_dirty);
struct dirty_bitmap *dirty_bitmap_find(const struct qcow2 *q, const char *name);
/* It can be read: is complete and understood. */
bool dirty_bitmap_usable(const struct qcow2 *q, const struct dirty_bitmap *bitmap);
uint64_t dirty_bitmap_bit_count(const struct dirty_bitmap *bitmap, uint64_t disk_size);
/* In a fiber, lock held, around a change of the disk's size to `size`: loads all, marks them as in use; then makes them longer or
 * shorter. The second has all that it needs from the first, and is called before the node has the new size, also after errors:
 * then `size` is the old one. */
int dirty_bitmaps_before_resize(struct qcow2 *q, uint64_t size);
void dirty_bitmaps_after_resize(struct qcow2 *q, uint64_t size);

/* ---- dirty_bitmap_store.c; in a fiber ---- */
/* The directory. Only a lack of memory is an error, all else makes `damaged`. */
int dirty_bitmaps_load_directory(struct qcow2 *q);
/* The image will be written: enabled bitmaps are loaded and marked as in use in the file. */
int dirty_bitmaps_begin(struct qcow2 *q);
/* Into memory, unless it is there. -EIO when it cannot be used. */
int dirty_bitmap_load(struct qcow2 *q, struct dirty_bitmap *bitmap);
/* Room for `bit_count` bits, all zero. */
int dirty_bitmap_allocate(struct qcow2 *q, struct dirty_bitmap *bitmap, uint64_t bit_count);
/* Lock held: everything to the file, stable. `closing`: they are no longer in use. */
int dirty_bitmaps_store(struct qcow2 *q, bool closing);
/* Its clusters become free with the next store. */
int dirty_bitmap_drop_table(struct qcow2 *q, struct dirty_bitmap *bitmap);
void dirty_bitmap_free(struct dirty_bitmap *bitmap);
void dirty_bitmaps_free(struct qcow2 *q);
