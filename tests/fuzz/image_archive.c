/* Fuzz target: archives that are imported (OCI layouts, docker-archives, their compression). Whatever comes, no temporary file
 * is left, and what was taken can be read. */
#include <assert.h>
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "image/image_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct image_store *store;
static char dir[] = "/tmp/polder-fuzz-XXXXXX";

static void end(void)
{
    char command[64];
    image_store_close(store);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    if (system(command))
        fprintf(stderr, "%s is left\n", dir);
}

static unsigned temporary_files(void)
{
    char path[64];
    unsigned count = 0;
    snprintf(path, sizeof path, "%s/%s", dir, store->tmp_name);
    DIR *folder = opendir(path);
    assert(folder);
    for (struct dirent *entry; (entry = readdir(folder));)
        count += entry->d_name[0] != '.';
    closedir(folder);
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char ref[IMAGE_REF_SIZE];
    struct image_gc_result result;
    if (!store) {
        assert(mkdtemp(dir) && image_store_open(dir, &store, NULL) == 0);
        atexit(end);
    }
    own_fd int fd = memfd_create("archive", MFD_CLOEXEC);
    assert(write(fd, data, size) == (ssize_t)size && lseek(fd, 0, SEEK_SET) == 0);
    if (image_import(store, fd, "x", NULL, ref, NULL) == 0) {
        json_t *image = NULL;
        assert(image_inspect(store, ref, &image, NULL) == 0);
        json_decref(image);
        assert(image_remove(store, ref, NULL) == 0);
    }
    assert(temporary_files() == 0);
    assert(image_gc(store, NULL, 0, &result, NULL) == 0);
    return 0;
}
