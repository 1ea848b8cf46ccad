/* A layer's bytes, unpacked twice (the second time over what the first left) into a folder in memory. Beside it lies what must not
 * change. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/rootfs.h"

static void must(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "%s\n", what);
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char dir[] = "/dev/shm/layer-fuzz-XXXXXX";
    struct rootfs_counts counts = {.bytes = ROOTFS_BYTES_MAX - (UINT64_C(64) << 20)};
    struct stat before, after;
    int layer = memfd_create("layer", MFD_CLOEXEC);
    must(layer >= 0 && mkdtemp(dir) && write(layer, data, size) == (ssize_t)size, "set-up");
    int top = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must(mkdirat(top, "root", 0755) == 0 && mkdirat(top, "outside", 0750) == 0, "set-up");
    int root = openat(top, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    fstatat(top, "outside", &before, 0);
    for (int i = 0; i < 2; i++) {
        struct err err = {0};
        lseek(layer, 0, SEEK_SET);
        int r = rootfs_unpack(root, layer, &counts, &err);
        must(r == 0 || (r < 0 && err.message[0]), "an error says what it is");
    }
    must(fstatat(top, "outside", &after, 0) == 0 && before.st_mode == after.st_mode && before.st_uid == after.st_uid &&
             before.st_ctim.tv_nsec == after.st_ctim.tv_nsec && before.st_ctim.tv_sec == after.st_ctim.tv_sec,
         "nothing outside of the root changes");
    must(unlinkat(top, "outside", AT_REMOVEDIR) == 0 && rootfs_remove(top, "root") == 0, "all that was unpacked can be removed");
    must(rmdir(dir) == 0, "nothing else was made");
    close(root);
    close(top);
    close(layer);
    return 0;
}
