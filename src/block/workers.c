#include "block/workers.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "block/fiber.h"
#include "block/ring_impl.h"

#define THREADS_MAX 16u

/* On the stack of the fiber that waits for it. */
struct job {
    void (*fn)(void *arg);
    void *arg;
    struct fiber *fiber;
    struct job *next;
};

struct job_list {
    struct job *first, **end;
};

struct block_workers {
    pthread_t threads[THREADS_MAX];
    unsigned wanted, count;
    int event_fd; /* some are done */
    pthread_mutex_t lock;
    pthread_cond_t some;
    struct job_list todo, done; /* under the lock */
    bool stop;
};

static void list_init(struct job_list *list)
{
    list->first = NULL;
    list->end = &list->first;
}

static void list_append(struct job_list *list, struct job *job)
{
    job->next = NULL;
    *list->end = job;
    list->end = &job->next;
}

static struct job *list_take(struct job_list *list)
{
    struct job *job = list->first;
    if (job && (list->first = job->next) == NULL)
        list->end = &list->first;
    return job;
}

static void *run_jobs(void *arg)
{
    struct block_workers *w = arg;
    pthread_mutex_lock(&w->lock);
    for (;;) {
        struct job *job = list_take(&w->todo);
        if (!job && w->stop)
            break;
        if (!job) {
            pthread_cond_wait(&w->some, &w->lock);
            continue;
        }
        pthread_mutex_unlock(&w->lock);
        job->fn(job->arg);
        pthread_mutex_lock(&w->lock);
        bool first = !w->done.first;
        list_append(&w->done, job);
        if (first)
            eventfd_write(w->event_fd, 1);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* In the ring's thread. */
static void resume_done(void *arg)
{
    struct block_workers *w = arg;
    pthread_mutex_lock(&w->lock);
    struct job_list done = w->done;
    list_init(&w->done);
    pthread_mutex_unlock(&w->lock);
    for (struct job *job = done.first, *next; job; job = next) {
        next = job->next; /* the job goes with its fiber's next step */
        fiber_resume(job->fiber);
    }
}

int block_workers_create(struct block_ring *ring, unsigned threads, struct err *err)
{
    struct block_workers *w = calloc(1, sizeof *w);
    if (!w)
        return err_set(err, ENOMEM, "workers");
    w->wanted = threads < THREADS_MAX ? threads : THREADS_MAX;
    w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int r = w->event_fd < 0 ? -errno : block_ring_watch(ring, w->event_fd, resume_done, w);
    if (r < 0) {
        if (w->event_fd >= 0)
            close(w->event_fd);
        free(w);
        return err_set(err, -r, "workers");
    }
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->some, NULL);
    list_init(&w->todo);
    list_init(&w->done);
    ring->workers = w;
    return 0;
}

/* As many threads as there may be, or as the host allows. */
static void start_threads(struct block_workers *w)
{
    while (w->count < w->wanted && pthread_create(&w->threads[w->count], NULL, run_jobs, w) == 0)
        w->count++;
    w->wanted = w->count;
}

void block_work(struct block_ring *ring, void (*fn)(void *arg), void *arg)
{
    struct block_workers *w = ring->workers;
    if (w && w->count < w->wanted)
        start_threads(w);
    if (!w || !w->count) {
        fn(arg);
        return;
    }
    struct job job = {.fn = fn, .arg = arg, .fiber = fiber_current()};
    pthread_mutex_lock(&w->lock);
    list_append(&w->todo, &job);
    pthread_cond_signal(&w->some);
    pthread_mutex_unlock(&w->lock);
    fiber_wait();
}

void block_workers_free(struct block_workers *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->some);
    pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < w->count; i++)
        pthread_join(w->threads[i], NULL);
    pthread_cond_destroy(&w->some);
    pthread_mutex_destroy(&w->lock);
    close(w->event_fd);
    free(w);
}
