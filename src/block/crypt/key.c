/* Key files. */
#include "block/crypt/key.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/own.h"

static int read_all(int fd, struct block_key *key, struct err *err)
{
    while (key->len <= BLOCK_KEY_MAX) {
        ssize_t n = read(fd, key->bytes + key->len, BLOCK_KEY_MAX + 1 - key->len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, errno, "key '%s'", key->name);
        if (n == 0)
            break;
        key->len += (size_t)n;
    }
    if (!key->len)
        return err_say(err, EINVAL, "key '%s' is empty", key->name);
    if (key->len > BLOCK_KEY_MAX)
        return err_say(err, EINVAL, "key '%s' is longer than %u bytes; is it the right file?", key->name, BLOCK_KEY_MAX);
    return 0;
}

int block_key_read(const char *path, struct block_key **ret_key, struct err *err)
{
    bool standard_input = strcmp(path, "-") == 0;
    own_fd int fd = standard_input ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0) : fdname_open(path, O_RDONLY, 0);
    if (fd < 0)
        return err_set(err, errno, "key '%s'", path);
    struct block_key *key = calloc(1, sizeof *key);
    if (key)
        *key = (struct block_key){.bytes = secret_alloc(BLOCK_KEY_MAX + 1), .name = strdup(standard_input ? "standard input" : path)};
    int r = 0;
    if (!key || !key->name)
        r = err_set(err, ENOMEM, "key '%s'", path);
    else if (!key->bytes)
        r = err_say(err, ENOMEM, "key '%s': no memory can be locked for it; raise the limit (ulimit -l)", path);
    else
        r = read_all(fd, key, err);
    if (r < 0)
        block_key_free(key);
    else
        *ret_key = key;
    return r;
}

void block_key_free(struct block_key *key)
{
    if (!key)
        return;
    secret_free(key->bytes);
    free(key->name);
    free(key);
}
