/* Early writeback: what goes into the page cache goes on to the disk while more comes, so that the flush at the end has little left to
 * wait for. The host itself begins when a tenth of its memory is dirty, or after half a minute. */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "img/img.h"

#define PERIOD_NS 20000000

struct img_writeback {
    pthread_t thread;
    int fd;
    bool stopping; /* atomic */
};

static void *run(void *arg)
{
    struct img_writeback *w = arg;
    while (!__atomic_load_n(&w->stopping, __ATOMIC_RELAXED)) {
        int ignored = sync_file_range(w->fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* only begins; errors are the flush's to tell */
        (void)ignored;
        nanosleep(&(struct timespec){.tv_nsec = PERIOD_NS}, NULL);
    }
    return NULL;
}

struct img_writeback *img_writeback_start(const char *path)
{
    struct img_writeback *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    w->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (w->fd >= 0 && pthread_create(&w->thread, NULL, run, w) == 0)
        return w;
    if (w->fd >= 0)
        close(w->fd);
    free(w);
    return NULL;
}

void img_writeback_stop(struct img_writeback *w)
{
    if (!w)
        return;
    __atomic_store_n(&w->stopping, true, __ATOMIC_RELAXED);
    pthread_join(w->thread, NULL);
    close(w->fd);
    free(w);
}
