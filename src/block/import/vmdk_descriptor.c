/* VMDK descriptors: lines "NAME=VALUE", and one for each extent: ACCESS SECTORS KIND ["FILE" [SECTOR]]. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/own.h"
#include "block/import/vmdk_impl.h"
#include "block/names.h"

#define SECTORS_MAX (UINT64_C(1) << 40)

struct line {
    char access[16], kind[16], name[256];
    uint64_t sectors, start;
};

static int add_flat(struct import_node *node, const struct line *line, unsigned file, struct err *err)
{
    uint64_t len = line->sectors * BLOCK_SECTOR_SIZE, start = line->start * BLOCK_SECTOR_SIZE, have = node->files[file]->size;
    if (start > have || len > have - start)
        return err_say(err, EINVAL, "its file '%.80s' is cut off", line->name);
    return import_add_extent(node, (struct import_extent){.len = len, .file = file, .base = start}, err);
}

/* What a sparse file says of its size must be what the descriptor says. */
static int add_sparse(struct import_node *node, const struct line *line, unsigned file, struct err *err)
{
    uint64_t before = node->node.size;
    int r = vmdk_load_sparse(node, file, err);
    if (r == 0 && node->node.size - before != line->sectors * BLOCK_SECTOR_SIZE)
        r = err_say(err, EINVAL, "its file '%.80s' has another size than it says", line->name);
    return r;
}

static int add_extent(struct import_node *node, const struct block_options *options, const struct line *line, struct err *err)
{
    bool flat = strcmp(line->kind, "FLAT") == 0;
    own_free char *path = NULL;
    own_fd int fd = -1;
    if (!line->sectors || line->sectors > SECTORS_MAX || line->start > SECTORS_MAX)
        return err_say(err, EINVAL, "an extent of %" PRIu64 " sectors is impossible", line->sectors);
    if (strcmp(line->kind, "ZERO") == 0)
        return import_add_extent(node, (struct import_extent){.len = line->sectors * BLOCK_SECTOR_SIZE, .zero = true}, err);
    if (!flat && strcmp(line->kind, "SPARSE") != 0)
        return import_refuse(err, "a vmdk extent of the kind %s", line->kind);
    if (strcmp(line->access, "NOACCESS") == 0)
        return err_say(err, EINVAL, "its file '%.80s' is marked as not to be read", line->name);
    int r = names_open(options, line->name, true, &fd, &path, err);
    if (r == 0)
        r = import_add_file(node, path, fd, err);
    if (r < 0)
        return r;
    TAKE_FD(fd);
    unsigned file = node->file_count - 1;
    return flat ? add_flat(node, line, file, err) : add_sparse(node, line, file, err);
}

static bool is_extent(const char *text, struct line *ret_line)
{
    struct line line = {0};
    int got = sscanf(text, "%15s %" SCNu64 " %15s \"%255[^\"\n]\" %" SCNu64, line.access, &line.sectors, line.kind, line.name, &line.start);
    bool access = strcmp(line.access, "RW") == 0 || strcmp(line.access, "RDONLY") == 0 || strcmp(line.access, "NOACCESS") == 0;
    *ret_line = line;
    return access && (got >= 4 || (got == 3 && strcmp(line.kind, "ZERO") == 0));
}

int vmdk_load_descriptor(struct import_node *node, const struct block_options *options, char *text, bool extents, struct err *err)
{
    int r = 0;
    for (char *line; r == 0 && (line = strsep(&text, "\n")) != NULL;) {
        struct line extent;
        char parent[16];
        if (sscanf(line, "parentCID = %15[0-9a-fA-F]", parent) == 1 && strcasecmp(parent, "ffffffff") != 0)
            r = import_refuse(err, "a vmdk image with a parent");
        else if (extents && is_extent(line, &extent))
            r = add_extent(node, options, &extent, err);
    }
    return r;
}
