#include "net/net.h"

#include <errno.h>
#include <string.h>

const struct net_class *const net_classes[] = {
    &net_tap,
    &net_user,
    &net_none,
    NULL,
};

int net_open(const struct net_options *options, struct net_backend **ret_backend, struct err *err)
{
    for (unsigned i = 0; net_classes[i]; i++) {
        if (strcmp(net_classes[i]->name, options->driver) == 0)
            return net_classes[i]->open(options, ret_backend, err);
    }
    return err_say(err, EINVAL, "network backend '%s' is not known: tap, user or none", options->driver);
}

void net_close(struct net_backend *backend)
{
    if (backend)
        backend->class->close(backend);
}
