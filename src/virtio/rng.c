/* One queue of buffers to fill. Requests beyond the rate limit wait for its timer; nothing else is kept. */
#include "virtio/rng.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define QUEUE_SIZE 256
#define BYTES_PER_CHAIN_MAX 65536u /* the driver asks again for more */

struct virtio_rng {
    struct virtio_device dev; /* first */
    struct limiter limiter;
    struct loop_source *timer;
    uint64_t entropy_bytes, entropy_event_count, host_rng_fails, rate_limiter_throttled_events,
        rate_limiter_event_count;
};

static size_t fill(struct virtio_rng *rng, struct virtq_chain *chain)
{
    size_t done = 0;
    for (unsigned i = 0; i < chain->in_count && done < BYTES_PER_CHAIN_MAX; i++) {
        size_t want = chain->in[i].iov_len;
        want = want < BYTES_PER_CHAIN_MAX - done ? want : BYTES_PER_CHAIN_MAX - done;
        ssize_t n = getrandom(chain->in[i].iov_base, want, 0);
        if (n < 0) {
            stat_add(&rng->host_rng_fails, 1);
            break;
        }
        done += (size_t)n;
        if ((size_t)n < want)
            break;
    }
    stat_add(&rng->entropy_bytes, done);
    return done;
}

/* False when the limiter says to wait: the chain goes back to the queue. */
static bool serve(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    struct virtio_rng *rng = (struct virtio_rng *)dev;
    uint32_t len = chain->in_len < BYTES_PER_CHAIN_MAX ? chain->in_len : BYTES_PER_CHAIN_MAX;
    uint64_t wait_ns = limiter_take(&rng->limiter, len, limiter_now());
    if (wait_ns) {
        virtq_unpop(&dev->queues[index], 1);
        stat_add(&rng->rate_limiter_throttled_events, 1);
        loop_timer_set(rng->timer, wait_ns);
        return false;
    }
    stat_add(&rng->entropy_event_count, 1);
    virtq_push(&dev->queues[index], chain, (uint32_t)fill(rng, chain));
    return true;
}

static void rng_kicked(struct virtio_device *dev, unsigned index)
{
    virtio_serve(dev, index, serve);
}

static void on_timer(void *arg)
{
    struct virtio_rng *rng = arg;
    stat_add(&rng->rate_limiter_event_count, 1);
    virtio_kick(&rng->dev, 0);
}

static void rng_start(struct virtio_device *dev)
{
    (void)dev;
}

static void rng_reset(struct virtio_device *dev)
{
    (void)dev;
}

static void rng_free(struct virtio_device *dev)
{
    struct virtio_rng *rng = (struct virtio_rng *)dev;
    loop_remove(rng->timer);
    virtio_release(dev);
    free(rng);
}

#define STAT(field) {#field, offsetof(struct virtio_rng, field)}
static const struct virtio_stat rng_stats[] = {
    STAT(entropy_bytes), STAT(entropy_event_count), STAT(host_rng_fails),
    STAT(rate_limiter_throttled_events), STAT(rate_limiter_event_count), {0}};

const struct virtio_class virtio_rng = {
    .name = "virtio-rng",
    .type = 4,
    .pci_class = 0x100000, /* encryption controller */
    .stats = rng_stats,
    .start = rng_start,
    .kicked = rng_kicked,
    .reset = rng_reset,
    .free = rng_free,
};

int virtio_rng_create(const struct virtio_rng_config *config, const struct virtio_host *host,
                      struct virtio_device **ret_dev, struct err *err)
{
    struct virtio_rng *rng = calloc(1, sizeof *rng);
    if (!rng)
        return err_set(err, ENOMEM, "virtio-rng");
    static const uint16_t sizes[] = {QUEUE_SIZE};
    struct virtio_setup setup = {.id = config->id ? config->id : "rng", .queue_count = 1, .queue_sizes = sizes};
    int r = virtio_init(&rng->dev, &virtio_rng, host, &setup, err);
    if (r < 0) {
        free(rng);
        return r;
    }
    limiter_init(&rng->limiter, &config->limiter, limiter_now());
    rng->timer = loop_add_timer(host->loop, on_timer, rng);
    r = rng->timer ? virtio_attach(&rng->dev, err) : err_set(err, ENOMEM, "virtio-rng");
    if (r < 0) {
        rng_free(&rng->dev);
        return r;
    }
    *ret_dev = &rng->dev;
    return 0;
}
