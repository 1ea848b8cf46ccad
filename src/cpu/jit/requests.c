#include "cpu/jit/requests.h"

#include <sched.h>

#include "cpu/jit/cache_impl.h"
#include "cpu/jit/mmu.h"
#include "cpu/jit/vcpu.h"

void requests_init(struct jit_vcpu *cpu)
{
    pthread_mutex_init(&cpu->requests.lock, NULL);
    cpu->requests.offline = 1;
}

void requests_drop_writes(struct jit_vcpu *cpu, const uint8_t *page)
{
    tlb_drop_writes(cpu, page);
    uint64_t number = (uint64_t)(page - cpu->translator->ram) / MEM_PAGE_SIZE;
    __atomic_fetch_and(&cpu->engine->write_pages[number], ~(1u << cpu->base.index), __ATOMIC_SEQ_CST);
}

static void serve_one(struct jit_vcpu *cpu, const struct request *request)
{
    if (request->start == request->end)
        requests_drop_writes(cpu, request->page);
    else
        cache_drop_range(cpu, request->page, request->start, request->end);
}

void requests_serve(struct jit_vcpu *cpu)
{
    struct requests *r = &cpu->requests;
    if (__atomic_load_n(&r->posted, __ATOMIC_SEQ_CST) == r->served)
        return;
    pthread_mutex_lock(&r->lock);
    if (r->overflow) {
        mmu_flush_all(cpu);
        cache_drop_all(cpu);
    }
    for (unsigned i = 0; i < r->count; i++)
        serve_one(cpu, &r->list[i]);
    r->overflow = false;
    r->count = 0;
    __atomic_store_n(&r->served, r->posted, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&r->lock);
}

/* Writes to one page come in runs, as when it is cleared or copied to: one wider range stands for them. */
static bool merge(struct requests *r, const struct request *request)
{
    for (unsigned i = r->count; i-- > 0;) {
        struct request *known = &r->list[i];
        if (known->page != request->page || (known->start == known->end) != (request->start == request->end))
            continue;
        if (request->start < known->start)
            known->start = request->start;
        if (request->end > known->end)
            known->end = request->end;
        return true;
    }
    return false;
}

static uint64_t post(struct jit_vcpu *other, struct request request)
{
    struct requests *r = &other->requests;
    pthread_mutex_lock(&r->lock);
    if (!merge(r, &request)) {
        if (r->count < REQUESTS_MAX)
            r->list[r->count++] = request;
        else
            r->overflow = true;
    }
    uint64_t ticket = __atomic_add_fetch(&r->posted, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&r->lock);
    return ticket;
}

void requests_go_offline(struct jit_vcpu *cpu)
{
    __atomic_store_n(&cpu->requests.offline, 1, __ATOMIC_SEQ_CST);
}

void requests_go_online(struct jit_vcpu *cpu)
{
    __atomic_store_n(&cpu->requests.offline, 0, __ATOMIC_SEQ_CST);
    requests_serve(cpu);
}

void requests_ask_drop_writes(struct jit_vcpu *asker, struct jit_vcpu *other, const uint8_t *page)
{
    uint64_t ticket = post(other, (struct request){.page = page});
    vcpu_notify(other);
    while (__atomic_load_n(&other->requests.served, __ATOMIC_SEQ_CST) < ticket &&
           !__atomic_load_n(&other->requests.offline, __ATOMIC_SEQ_CST)) {
        requests_serve(asker);
        sched_yield();
    }
}

void requests_post_written(struct jit_vcpu *other, const uint8_t *page, uint64_t start, uint64_t end)
{
    post(other, (struct request){page, (uint16_t)start, (uint16_t)end});
    vcpu_notify(other);
}
