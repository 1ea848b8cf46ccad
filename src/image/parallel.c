/* A few threads for the blobs of one image. */
#include <errno.h>
#include "image/image_impl.h"

#define THREADS_MAX 4 /* as docker: more does not make a registry quicker */

struct parallel {
    parallel_fn fn;
    void *context;
    size_t count;
    struct image_meter *meter;
    atomic_size_t next;
    pthread_mutex_t lock;
    int ret; /* the first error's */
    struct err err;
};

static void *work(void *context)
{
    struct parallel *work = context;
    for (size_t i; !atomic_load(&work->meter->stopped) && (i = atomic_fetch_add(&work->next, 1)) < work->count;) {
        struct err err = {0};
        int ret = work->fn(work->context, i, &err);
        if (ret >= 0)
            continue;
        pthread_mutex_lock(&work->lock);
        if (!work->ret) {
            work->ret = ret;
            work->err = err;
        }
        pthread_mutex_unlock(&work->lock);
        atomic_store(&work->meter->stopped, true);
    }
    return NULL;
}

int parallel_run(parallel_fn fn, void *context, size_t count, struct image_meter *meter, struct err *err)
{
    struct parallel shared = {.fn = fn, .context = context, .count = count, .meter = meter};
    pthread_mutex_init(&shared.lock, NULL);
    pthread_t threads[THREADS_MAX - 1] = {0};
    size_t started = 0, wanted = count < THREADS_MAX ? count : THREADS_MAX;
    while (started + 1 < wanted && pthread_create(&threads[started], NULL, work, &shared) == 0)
        started++;
    work(&shared);
    for (size_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&shared.lock);
    if (shared.ret < 0 && err)
        *err = shared.err;
    return shared.ret < 0 ? shared.ret : meter_check(meter, err);
}
