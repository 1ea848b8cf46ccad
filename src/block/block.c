#include "block/block.h"

#include <errno.h>
#include <string.h>

const struct block_class *const block_classes[] = {
    &block_file,
    NULL,
};

int block_open(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    const char *driver = options->driver ? options->driver : "file";
    for (unsigned i = 0; block_classes[i]; i++) {
        if (strcmp(block_classes[i]->name, driver) == 0)
            return block_classes[i]->open(options, ret_node, err);
    }
    return err_say(err, EINVAL, "disk driver '%s' is not known", driver);
}

void block_close(struct block_node *node)
{
    if (node)
        node->class->close(node);
}

int block_attach(struct block_node *node, struct block_ring *ring, struct err *err)
{
    node->ring = ring;
    return node->class->attach ? node->class->attach(node, ring, err) : 0;
}
