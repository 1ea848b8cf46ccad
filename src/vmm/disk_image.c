#include "vmm/disk_live_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/own.h"
#include "block/crypt/key.h"

/* ---- the disk, asked in its own thread ---- */

static int get_facts(struct block_node **node, void *arg)
{
    struct disk_facts *facts = arg;
    struct block_node *n = *node;
    struct qcow2_info info = {0};
    if (n->class == &block_qcow2)
        qcow2_get_info(n, &info);
    *facts = (struct disk_facts){.size = n->size,
                            .path = strdup(n->name),
                            .format = n->class == &block_file ? "raw" : n->class->name,
                            .read_only = n->read_only,
                            .encrypted = info.encrypted || n->class == &block_luks,
                            .copied = block_is_copy(n)};
    return facts->path ? 0 : -ENOMEM;
}

int disk_ask(struct virtio_device *dev, struct disk_facts *ret_facts, struct err *err)
{
    int r = virtio_blk_run(dev, false, get_facts, ret_facts);
    if (r < 0)
        return err_set(err, -r, "disk '%s'", dev->id);
    if (!ret_facts->copied)
        return 0;
    free(ret_facts->path);
    ret_facts->path = NULL;
    return err_say(err, EBUSY, "disk '%s' is being copied; wait, or cancel the copy", dev->id);
}

static int get_chain(struct block_node **node, void *arg)
{
    char **name = arg;
    struct block_node *n = block_is_copy(*node) ? block_copy_source(*node) : *node;
    for (unsigned i = 0; i < VM_MAX_BACKING && n->class == &block_qcow2 && (n = qcow2_backing(n)) != NULL; i++)
        if ((name[i] = strdup(n->name)) == NULL)
            return -ENOMEM;
    return 0;
}

int disk_chain(struct virtio_device *dev, char *ret_names[VM_MAX_BACKING + 1], struct err *err)
{
    char *names[VM_MAX_BACKING + 1] = {0};
    int r = virtio_blk_run(dev, false, get_chain, names);
    for (unsigned i = 0; r < 0 && names[i]; i++)
        free(names[i]);
    if (r < 0)
        return err_set(err, -r, "disk '%s'", dev->id);
    memcpy(ret_names, names, sizeof names);
    return 0;
}

/* ---- new images ---- */

/* An empty file where there was none, so that nothing is ever overwritten. */
static int claim(const char *path, uint64_t size, struct err *err)
{
    own_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno == EEXIST ? err_say(err, EEXIST, "'%s' exists; name a new file", path) : err_set(err, errno, "'%s'", path);
    if (size && ftruncate(fd, (off_t)size) < 0) {
        int code = errno;
        unlink(path);
        return err_set(err, code, "'%s'", path);
    }
    return 0;
}

char *disk_backing_name(const char *image, const char *backing)
{
    own_free char *a = strdup(image), *b = strdup(backing);
    own_free char *image_folder = a ? realpath(dirname(a), NULL) : NULL, *real = b ? realpath(backing, NULL) : NULL;
    if (!image_folder || !real)
        return NULL;
    size_t len = strlen(image_folder);
    bool same = strncmp(real, image_folder, len) == 0 && real[len] == '/' && !strchr(real + len + 1, '/');
    return strdup(same ? real + len + 1 : real);
}

static int fill_image(const struct disk_image *image, struct block_node **ret_node, struct err *err)
{
    own_free char *name = image->backing ? disk_backing_name(image->path, image->backing->path) : NULL;
    if (image->backing && !name)
        return err_set(err, errno, "'%s'", image->path);
    struct qcow2_create create = {.path = image->path,
                                  .size = image->size,
                                  .version = 3,
                                  .cluster_size = 65536,
                                  .refcount_bits = 16,
                                  .encrypt = image->key,
                                  .key = image->key,
                                  .backing = name,
                                  .backing_format = image->backing ? image->backing->format : NULL};
    struct block_options options = {
        .driver = image->format, .path = image->path, .fd = -1, .direct = image->direct, .no_backing = true, .key = image->key};
    int r = strcmp(image->format, "qcow2") == 0 ? qcow2_create(&create, err) : 0;
    return r < 0 ? r : block_open(&options, ret_node, err);
}

int disk_image_make(struct disk_image *image, const struct vm_disk *disk, const struct disk_facts *facts, struct block_node **ret_node,
                      struct err *err)
{
    bool raw = strcmp(image->format, "raw") == 0;
    struct block_key *key = NULL;
    if (facts->encrypted && raw)
        return err_say(err, EINVAL, "disk '%s' is encrypted, and a raw image would not be; choose format qcow2", disk->id);
    int r = facts->encrypted ? block_key_read(disk->key_path, &key, err) : 0;
    if (r == 0)
        r = claim(image->path, raw ? facts->size : 0, err);
    if (r == 0) {
        image->key = key;
        image->size = facts->size;
        image->direct = disk->direct;
        r = fill_image(image, ret_node, err);
        if (r < 0)
            unlink(image->path);
    }
    block_key_free(key);
    return r;
}

void disk_image_discard(struct block_node *node, const char *path)
{
    block_close(node);
    if (unlink(path) < 0)
        log_warn("'%s' could not be removed: %s", path, strerror(errno));
}
