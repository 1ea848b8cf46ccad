/* One thread a vCPU. `pause` and `stop` are wishes, `parked` counts who has obeyed; all under the lock. A wish is followed by a
 * kick, and a kick before vcpu_run counts for the next one, so none is lost. */
#include "vmm/vcpus.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define STACK_SIZE (512u << 10)

struct vcpu_thread {
    struct vcpus *owner;
    struct vcpu *vcpu;
    unsigned index;
    bool started;
    bool ended; /* parked until a resume, whatever `pause` says */
    pthread_t thread;
};

struct vcpus {
    const struct engine_class *class;
    struct engine *engine;
    vcpus_begin_fn *begin;
    vcpus_ended_fn *ended;
    void *arg;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool pause, stop;
    unsigned parked, count;
    struct vcpu_thread threads[];
};

/* Waits out a pause; false when the thread is to stop. */
static bool wait_for_go(struct vcpu_thread *t)
{
    struct vcpus *owner = t->owner;
    pthread_mutex_lock(&owner->lock);
    owner->parked++;
    pthread_cond_broadcast(&owner->changed);
    while ((owner->pause || t->ended) && !owner->stop)
        pthread_cond_wait(&owner->changed, &owner->lock);
    owner->parked--;
    bool go = !owner->stop;
    pthread_mutex_unlock(&owner->lock);
    return go;
}

static void *run(void *arg)
{
    struct vcpu_thread *t = arg;
    char name[16];
    snprintf(name, sizeof name, "vcpu%u", t->index % 1000);
    pthread_setname_np(pthread_self(), name);
    for (bool begun = false; wait_for_go(t); begun = true) {
        if (!begun)
            t->owner->begin(t->owner->arg);
        enum vcpu_exit why = t->owner->class->vcpu_run(t->vcpu);
        if (why == VCPU_EXIT_KICKED)
            continue;
        t->owner->ended(t->owner->arg, t->index, why);
        pthread_mutex_lock(&t->owner->lock);
        t->ended = true;
        pthread_mutex_unlock(&t->owner->lock);
    }
    return NULL;
}

static int start_thread(struct vcpu_thread *t, struct err *err)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    int r = pthread_create(&t->thread, &attr, run, t);
    pthread_attr_destroy(&attr);
    if (r)
        return err_set(err, r, "thread of vCPU %u", t->index);
    t->started = true;
    return 0;
}

int vcpus_create(struct engine *engine, unsigned count, vcpus_begin_fn *begin, vcpus_ended_fn *ended, void *arg, struct vcpus **ret_vcpus,
                 struct err *err)
{
    struct vcpus *vcpus = calloc(1, sizeof *vcpus + count * sizeof vcpus->threads[0]);
    if (!vcpus)
        return err_set(err, ENOMEM, "vCPUs");
    *vcpus = (struct vcpus){.class = engine->class, .engine = engine, .begin = begin, .ended = ended, .arg = arg, .pause = true};
    pthread_mutex_init(&vcpus->lock, NULL);
    pthread_cond_init(&vcpus->changed, NULL);
    int r = 0;
    for (unsigned i = 0; r == 0 && i < count; i++) {
        struct vcpu_thread *t = &vcpus->threads[i];
        *t = (struct vcpu_thread){.owner = vcpus, .index = i};
        r = vcpus->class->vcpu_create(engine, i, &t->vcpu, err);
        vcpus->count = r == 0 ? i + 1 : i;
    }
    for (unsigned i = 0; r == 0 && i < count; i++)
        r = start_thread(&vcpus->threads[i], err);
    if (r < 0) {
        vcpus_free(vcpus);
        return r;
    }
    *ret_vcpus = vcpus;
    return 0;
}

static void kick_all(struct vcpus *vcpus)
{
    for (unsigned i = 0; i < vcpus->count; i++)
        vcpus->class->vcpu_kick(vcpus->threads[i].vcpu);
}

void vcpus_free(struct vcpus *vcpus)
{
    if (!vcpus)
        return;
    pthread_mutex_lock(&vcpus->lock);
    vcpus->stop = true;
    pthread_cond_broadcast(&vcpus->changed);
    pthread_mutex_unlock(&vcpus->lock);
    kick_all(vcpus);
    for (unsigned i = 0; i < vcpus->count; i++)
        if (vcpus->threads[i].started)
            pthread_join(vcpus->threads[i].thread, NULL);
    for (unsigned i = 0; i < vcpus->count; i++)
        vcpus->class->vcpu_free(vcpus->threads[i].vcpu);
    pthread_cond_destroy(&vcpus->changed);
    pthread_mutex_destroy(&vcpus->lock);
    free(vcpus);
}

void vcpus_request_pause(struct vcpus *vcpus)
{
    pthread_mutex_lock(&vcpus->lock);
    vcpus->pause = true;
    pthread_mutex_unlock(&vcpus->lock);
    kick_all(vcpus);
}

void vcpus_pause(struct vcpus *vcpus)
{
    vcpus_request_pause(vcpus);
    pthread_mutex_lock(&vcpus->lock);
    while (vcpus->parked < vcpus->count)
        pthread_cond_wait(&vcpus->changed, &vcpus->lock);
    pthread_mutex_unlock(&vcpus->lock);
}

void vcpus_resume(struct vcpus *vcpus)
{
    pthread_mutex_lock(&vcpus->lock);
    vcpus->pause = false;
    for (unsigned i = 0; i < vcpus->count; i++)
        vcpus->threads[i].ended = false;
    pthread_cond_broadcast(&vcpus->changed);
    pthread_mutex_unlock(&vcpus->lock);
}

void vcpus_get_state(struct vcpus *vcpus, unsigned index, struct x86_state *ret_state)
{
    vcpus->class->vcpu_get_state(vcpus->threads[index].vcpu, ret_state);
}

int vcpus_set_state(struct vcpus *vcpus, unsigned index, const struct x86_state *state, struct err *err)
{
    return vcpus->class->vcpu_set_state(vcpus->threads[index].vcpu, state, err);
}
