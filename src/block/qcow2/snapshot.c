/* Internal snapshots: a copy of the L1 table; what hangs below is shared, and counted once more.
 *
 * create: counts go up | the active tables no longer call shared clusters their own | the snapshot is listed
 * delete: the snapshot is no longer listed | counts go down
 * apply: counts of the snapshot's tree go up | flags | the header names a copy of its L1 table | the old tree's go down
 * Each step is stable before the next, so that a crash leaves counts that are too high at worst. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/own.h"
#include "block/qcow2/snapshot_impl.h"

struct work {
    struct qcow2 *q;
    struct qcow2_snapshots all;
    uint64_t old_len; /* of the table in the file */
};

static int begin(struct work *work, struct block_node *node, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    *work = (struct work){.q = q};
    if (q->external)
        return err_say(err, ENOTSUP, "disk '%s' has an external data file, which excludes snapshots", node->name);
    int r = qcow2_snapshots_load(node, &work->all, err);
    if (r < 0)
        return r;
    work->old_len = work->all.table_len;
    fiber_lock(&q->lock);
    return 0;
}

static int end(struct work *work, int r, struct err *err)
{
    for (unsigned i = 0; r == 0 && i < 2; i++) /* the second writes what deferred frees changed */
        r = checkpoint(work->q);
    fiber_unlock(&work->q->lock);
    qcow2_snapshots_free(&work->all);
    if (r == -EEXIST)
        return err_say(err, EEXIST, "disk '%s' has a snapshot of this name already", work->q->node.name);
    if (r == -ENOENT)
        return err_say(err, ENOENT, "disk '%s' has no snapshot of this name", work->q->node.name);
    return r < 0 ? err_set(err, -r, "disk '%s': snapshot", work->q->node.name) : 0;
}

/* Index of a snapshot by name, else by id; the count when there is none. */
static uint32_t find(const struct qcow2_snapshots *all, const char *name)
{
    for (uint32_t i = 0; i < all->count; i++)
        if (strcmp(all->list[i].name, name) == 0)
            return i;
    for (uint32_t i = 0; i < all->count; i++)
        if (strcmp(all->list[i].id, name) == 0)
            return i;
    return all->count;
}

/* ---- create ---- */

static int new_id(const struct qcow2_snapshots *all, char **ret_id)
{
    unsigned long most = 0;
    for (uint32_t i = 0; i < all->count; i++) {
        unsigned long id = strtoul(all->list[i].id, NULL, 10);
        if (id > most)
            most = id;
    }
    return asprintf(ret_id, "%lu", most + 1) < 0 ? -ENOMEM : 0;
}

static int add_snapshot(struct work *work, const char *name)
{
    struct qcow2 *q = work->q;
    struct qcow2_snapshot *list = realloc(work->all.list, (work->all.count + 1) * sizeof *list);
    if (!list)
        return -ENOMEM;
    work->all.list = list;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct qcow2_snapshot s = {.l1_size = q->l1_size,
                               .disk_size = q->node.size,
                               .icount = UINT64_MAX,
                               .date_s = (uint32_t)now.tv_sec,
                               .date_ns = (uint32_t)now.tv_nsec,
                               .name = strdup(name),
                               .extra = calloc(1, 1)};
    int r = s.name && s.extra ? new_id(&work->all, &s.id) : -ENOMEM;
    if (r == 0)
        r = alloc_exactly(q, (uint32_t)cluster_count(q, (uint64_t)(q->l1_size ? q->l1_size : 1) * 8), &s.l1_offset);
    if (r == 0 && q->l1_size)
        r = write_entries(q, s.l1_offset, q->l1, 0, q->l1_size);
    list[work->all.count++] = s;
    return r;
}

static int create(struct work *work, const char *name)
{
    struct qcow2 *q = work->q;
    uint64_t offset = 0;
    int r = checkpoint(q);
    if (r == 0)
        r = add_snapshot(work, name);
    if (r == 0)
        r = snapshot_table_write(q, &work->all, &offset);
    if (r == 0)
        r = tree_add(q, q->l1, q->l1_size, 1);
    if (r == 0)
        r = checkpoint(q);
    if (r == 0)
        r = tree_fix_copied(q, NULL);
    return r < 0 ? r : snapshot_table_switch(q, &work->all, offset, work->old_len); /* which begins with a checkpoint */
}

int qcow2_snapshot_create(struct block_node *node, const char *name, struct err *err)
{
    struct work work;
    if (!*name || strlen(name) > 255)
        return err_say(err, EINVAL, "a snapshot's name has 1 to 255 bytes");
    if (qcow2_of(node)->refcount_order == 0)
        return err_say(err, ENOTSUP, "disk '%s' has refcounts of 1 bit, which leaves no room for snapshots", node->name);
    int r = begin(&work, node, err);
    if (r < 0)
        return r;
    if (find(&work.all, name) < work.all.count && strcmp(work.all.list[find(&work.all, name)].name, name) == 0)
        r = -EEXIST;
    else if (work.all.count >= SNAPSHOTS_MAX)
        r = -EMLINK;
    else
        r = create(&work, name);
    return end(&work, r, err);
}

/* ---- delete ---- */

/* A tree that nothing names any more: counts go down, and what has one reference left becomes the disk's own again. */
static int drop_tree(struct qcow2 *q, const uint64_t *l1, uint32_t l1_size, uint64_t l1_offset)
{
    int r = tree_add(q, l1, l1_size, -1);
    if (r == 0)
        r = free_run_later(q, l1_offset, cluster_count(q, (uint64_t)(l1_size ? l1_size : 1) * 8));
    if (r == 0) {
        drain_generation(q);
        r = apply_frees(q);
    }
    if (r == 0)
        r = tree_fix_copied(q, NULL);
    if (r == 0)
        return checkpoint_flags_first(q);
    q->failed = r; /* counts that went down without their flags must not reach the file */
    return r;
}

static int delete(struct work *work, uint32_t index)
{
    struct qcow2 *q = work->q;
    struct qcow2_snapshot gone = work->all.list[index];
    own_free uint64_t *l1 = NULL;
    int r = read_entries(q, gone.l1_offset, gone.l1_size, &l1);
    if (r < 0)
        return r;
    memmove(&work->all.list[index], &work->all.list[index + 1], (work->all.count - index - 1) * sizeof gone);
    work->all.count--;
    free(gone.id);
    free(gone.name);
    free(gone.extra);
    uint64_t offset = 0;
    r = snapshot_table_write(q, &work->all, &offset);
    if (r == 0)
        r = snapshot_table_switch(q, &work->all, offset, work->old_len);
    return r < 0 ? r : drop_tree(q, l1, gone.l1_size, gone.l1_offset);
}

int qcow2_snapshot_delete(struct block_node *node, const char *name, struct err *err)
{
    struct work work;
    int r = begin(&work, node, err);
    if (r < 0)
        return r;
    uint32_t index = find(&work.all, name);
    return end(&work, index < work.all.count ? delete(&work, index) : -ENOENT, err);
}

/* ---- apply ---- */

/* Makes `l1`, which it takes over, the active table. Its first `shared` entries are a snapshot's, too; the others are zero. */
static int apply(struct qcow2 *q, uint64_t *l1, uint32_t shared, uint32_t l1_size)
{
    uint64_t offset = 0, old_offset = q->l1_offset, *old = q->l1;
    uint32_t old_size = q->l1_size;
    int r = tree_add(q, l1, shared, 1);
    if (r == 0)
        r = alloc_exactly(q, (uint32_t)cluster_count(q, (uint64_t)l1_size * 8), &offset);
    if (r == 0)
        r = checkpoint(q);
    if (r < 0) {
        free(l1);
        return r;
    }
    q->l1 = l1; /* not in the file yet: only flags in the L2 tables are written meanwhile */
    q->l1_offset = offset;
    q->l1_size = l1_size;
    r = tree_fix_copied(q, NULL);
    q->l1_dirty = (struct dirty_range){0, l1_size};
    if (r == 0)
        r = checkpoint(q);
    if (r == 0)
        r = switch_l1(q, offset, l1_size);
    if (r == 0)
        r = drop_tree(q, old, old_size, old_offset);
    if (r < 0)
        q->failed = r;
    free(old);
    return r;
}

static int apply_found(struct work *work, const struct qcow2_snapshot *s, struct err *err)
{
    struct qcow2 *q = work->q;
    if (s->disk_size != q->node.size)
        return err_say(err, ENOTSUP, "snapshot '%s' has a disk of %llu bytes and the image one of %llu; convert it instead", s->name,
                       (unsigned long long)s->disk_size, (unsigned long long)q->node.size);
    int r = checkpoint(q);
    uint64_t *l1 = NULL;
    uint32_t l1_size = s->l1_size > q->l1_size ? s->l1_size : q->l1_size;
    if (r == 0)
        r = read_entries(q, s->l1_offset, s->l1_size, &l1);
    if (r < 0)
        return r;
    uint64_t room = cluster_count(q, (uint64_t)l1_size * 8) << q->cluster_bits, have = cluster_count(q, (uint64_t)s->l1_size * 8)
                                                                                        << q->cluster_bits;
    uint64_t *wide = aligned_alloc(4096, (room + 4095) & ~(uint64_t)4095);
    if (wide && l1) {
        memset(wide, 0, room);
        memcpy(wide, l1, have < room ? have : room);
    }
    free(l1);
    dirty_bitmaps_mark(q, 0, q->node.size);
    return wide ? apply(q, wide, s->l1_size, l1_size) : -ENOMEM;
}

int qcow2_snapshot_apply(struct block_node *node, const char *name, struct err *err)
{
    struct work work;
    struct err why = {0};
    int r = begin(&work, node, err);
    if (r < 0)
        return r;
    uint32_t index = find(&work.all, name);
    r = index < work.all.count ? apply_found(&work, &work.all.list[index], &why) : -ENOENT;
    r = end(&work, r, err);
    if (r < 0 && why.code && err)
        *err = why;
    return r;
}

/* ---- view ---- */

static int view(struct qcow2 *q, const struct qcow2_snapshot *s, struct err *err)
{
    uint64_t *l1;
    if (s->disk_size > INT64_MAX || cluster_count(q, s->disk_size) > (uint64_t)s->l1_size << q->l2_bits)
        return err_say(err, EINVAL, "snapshot '%s' has fewer L1 entries than its disk needs", s->name);
    int r = read_entries(q, s->l1_offset, s->l1_size, &l1);
    if (r < 0)
        return err_set(err, -r, "snapshot '%s'", s->name);
    free(q->l1);
    q->l1 = l1;
    q->l1_offset = s->l1_offset;
    q->l1_size = s->l1_size;
    q->node.size = s->disk_size;
    return 0;
}

int snapshot_view(struct qcow2 *q, const char *name, struct err *err)
{
    struct qcow2_snapshots all;
    int r = qcow2_snapshots_load(&q->node, &all, err);
    if (r < 0)
        return r;
    uint32_t index = find(&all, name);
    r = index < all.count ? view(q, &all.list[index], err)
                          : err_say(err, ENOENT, "disk '%s' has no snapshot '%s'", q->node.name, name);
    qcow2_snapshots_free(&all);
    return r;
}

/* ---- no snapshot at all ---- */

int qcow2_empty(struct block_node *node, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t room = cluster_count(q, (uint64_t)q->l1_size * 8) << q->cluster_bits;
    uint64_t *l1 = aligned_alloc(4096, ((room ? room : 1) + 4095) & ~(uint64_t)4095);
    if (!l1)
        return err_set(err, ENOMEM, "disk '%s': empty", node->name);
    memset(l1, 0, room);
    fiber_lock(&q->lock);
    int r = checkpoint(q);
    if (r < 0 || !q->l1_size)
        free(l1);
    else
        r = apply(q, l1, 0, q->l1_size);
    for (unsigned i = 0; r == 0 && i < 2; i++) /* the second writes what deferred frees changed */
        r = checkpoint(q);
    fiber_unlock(&q->lock);
    return r < 0 ? err_set(err, -r, "disk '%s': empty", node->name) : 0;
}
