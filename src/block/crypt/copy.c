/* Headers in memory. libcryptsetup works on paths: it gets a memfd's, so that nothing it does reaches an image, and no
 * loop device, device mapper or privilege is in play. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "block/crypt/key.h"
#include "block/crypt/luks_impl.h"

#define EMPTY_BYTES (4u << 20)

static void take_message(int level, const char *message, void *arg)
{
    struct luks_copy *copy = arg;
    size_t len = strcspn(message, "\n");
    if (level == CRYPT_LOG_ERROR)
        snprintf(copy->message, sizeof copy->message, "%.*s", (int)(len < 150 ? len : 150), message);
}

int luks_copy_open(struct luks_copy *copy, uint64_t size, struct err *err)
{
    char path[32];
    *copy = (struct luks_copy){.fd = -1};
    int r = crypt_library_load(err);
    if (r < 0)
        return r;
    *copy = (struct luks_copy){.fd = memfd_create("luks", MFD_CLOEXEC)};
    if (copy->fd < 0 || size > INT64_MAX || ftruncate(copy->fd, (off_t)size) < 0)
        return err_set(err, errno ? errno : EFBIG, "LUKS header in memory");
    snprintf(path, sizeof path, "/proc/self/fd/%d", copy->fd);
    r = crypt_lib.crypt_init(&copy->device, path);
    if (r < 0)
        return err_set(err, -r, "libcryptsetup (it needs /proc)");
    crypt_lib.crypt_set_log_callback(copy->device, take_message, copy);
    crypt_lib.crypt_metadata_locking(copy->device, 0); /* nobody else has this file */
    return 0;
}

void luks_copy_close(struct luks_copy *copy)
{
    if (copy->device)
        crypt_lib.crypt_free(copy->device);
    if (copy->fd >= 0)
        close(copy->fd);
    *copy = (struct luks_copy){.fd = -1};
}

int crypt_library_prepare(struct err *err)
{
    static void *unwinder; /* threads of Argon2 end by pthread_exit, which opens it */
    struct luks_copy copy;
    int r = luks_copy_open(&copy, EMPTY_BYTES, err);
    if (r == 0)
        (void)crypt_lib.crypt_load(copy.device, CRYPT_LUKS, NULL); /* there is no header */
    luks_copy_close(&copy);
    if (r == 0 && !unwinder && !(unwinder = dlopen("libgcc_s.so.1", RTLD_NOW)))
        r = err_say(err, ENOENT, "encryption in a sandbox needs libgcc_s.so.1: apt install libgcc-s1");
    return r;
}
