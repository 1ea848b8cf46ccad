/* Progress of long work: counted by any thread, told to one callback a few times a second. */
#include <errno.h>
#include <time.h>
#include "image/image_impl.h"
#include "base/clock.h"

#define REPORT_MS 100
#define SLEEP_STEP_MS 50

static void report(struct image_meter *meter)
{
    if (meter->progress && meter->progress->report)
        meter->progress->report(meter->progress->context, meter->what, meter->done, meter->total);
}

void meter_init(struct image_meter *meter, const struct image_progress *progress, const char *what, uint64_t total)
{
    *meter = (struct image_meter){.progress = progress, .what = what, .total = total};
    pthread_mutex_init(&meter->lock, NULL);
    report(meter);
}

void meter_end(struct image_meter *meter)
{
    report(meter);
    pthread_mutex_destroy(&meter->lock);
}

void meter_total(struct image_meter *meter, uint64_t total)
{
    pthread_mutex_lock(&meter->lock);
    meter->total = total;
    pthread_mutex_unlock(&meter->lock);
}

void meter_add(struct image_meter *meter, int64_t bytes)
{
    pthread_mutex_lock(&meter->lock);
    meter->done += (uint64_t)bytes;
    int64_t now = clock_now_ms();
    if (now - meter->reported_ms >= REPORT_MS) {
        meter->reported_ms = now;
        report(meter);
    }
    pthread_mutex_unlock(&meter->lock);
}

bool meter_cancelled(struct image_meter *meter)
{
    if (atomic_load(&meter->stopped))
        return true;
    if (!meter->progress || !meter->progress->cancelled)
        return false;
    pthread_mutex_lock(&meter->lock);
    bool cancelled = meter->progress->cancelled(meter->progress->context);
    pthread_mutex_unlock(&meter->lock);
    if (cancelled)
        atomic_store(&meter->stopped, true);
    return cancelled;
}

int meter_check(struct image_meter *meter, struct err *err)
{
    return meter_cancelled(meter) ? err_say(err, ECANCELED, "cancelled") : 0;
}

void meter_sleep(struct image_meter *meter, unsigned milliseconds)
{
    for (unsigned slept = 0; slept < milliseconds && !meter_cancelled(meter); slept += SLEEP_STEP_MS)
        nanosleep(&(struct timespec){.tv_nsec = SLEEP_STEP_MS * 1000000L}, NULL);
}
