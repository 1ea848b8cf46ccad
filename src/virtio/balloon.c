/* Pages the guest gives up are punched out of the memory file at once; taking them back needs nothing of us, they read
 * as zeroes. Everything runs in the loop's thread but the host's calls, under the device's lock.
 *
 * Queues are numbered by the features the driver accepted, as Linux does: inflate, deflate, then those of statistics,
 * hinting and reporting that are there. */
#include "virtio/balloon.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "mem/mem.h"

#define F_STATS_VQ 1
#define F_DEFLATE_ON_OOM 2
#define F_FREE_PAGE_HINT 3
#define F_REPORTING 5

#define C_NUM_PAGES 0
#define C_ACTUAL 4
#define C_HINT_CMD 8
#define CONFIG_LEN 16

#define QUEUE_SIZE 256u
#define QUEUES_MAX 5u
#define PAGES_PER_MIB 256u
#define PFNS_PER_CHAIN_MAX 16384u
#define PFN_BATCH 256u
#define STAT_SIZE 10u
#define STATS_PER_CHAIN_MAX 64u
#define HINT_STOP 0u
#define HINT_DONE 1u

enum role { INFLATE, DEFLATE, STATS, HINTING, REPORTING, NO_ROLE };

struct virtio_balloon {
    struct virtio_device dev; /* first */
    struct loop_source *timer;
    uint32_t interval_s;
    bool stats_held; /* the driver's statistics buffer waits here for the next round */
    struct virtq_chain stats_chain;
    uint32_t known;
    uint64_t values[VIRTIO_BALLOON_STAT_COUNT];
    uint32_t host_cmd, guest_cmd, last_run;
    bool guest_cmd_known, ack_on_stop;

    uint64_t inflate_count, deflate_count, stats_updates_count, stats_update_fails, event_fails, free_page_report_count,
        free_page_report_freed, free_page_report_fails, free_page_hint_count, free_page_hint_freed, free_page_hint_fails,
        inflated_pages, discard_fails;
};

static enum role role_of(const struct virtio_device *dev, unsigned index)
{
    static const struct {
        enum role role;
        unsigned feature;
    } optional[] = {{STATS, F_STATS_VQ}, {HINTING, F_FREE_PAGE_HINT}, {REPORTING, F_REPORTING}};
    if (index < 2)
        return index == 0 ? INFLATE : DEFLATE;
    unsigned next = 2;
    for (unsigned i = 0; i < 3; i++) {
        if (virtio_has(dev, optional[i].feature) && next++ == index)
            return optional[i].role;
    }
    return NO_ROLE;
}

static bool discard(struct virtio_balloon *b, uint64_t gpa, uint64_t len)
{
    if (mem_discard(b->dev.host.mem, gpa, len) == 0)
        return true;
    stat_add(&b->discard_fails, 1);
    return false;
}

/* ---- inflate ---- */

static int compare_pfns(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* One call for each run of neighbouring pages. */
static void discard_pfns(struct virtio_balloon *b, uint32_t *pfns, unsigned count)
{
    qsort(pfns, count, sizeof *pfns, compare_pfns);
    for (unsigned i = 0; i < count;) {
        unsigned run = 1;
        while (i + run < count && pfns[i + run] <= pfns[i + run - 1] + UINT64_C(1))
            run++;
        uint64_t pages = (uint64_t)pfns[i + run - 1] - pfns[i] + 1;
        discard(b, (uint64_t)pfns[i] * MEM_PAGE_SIZE, pages * MEM_PAGE_SIZE);
        i += run;
    }
    stat_add(&b->inflated_pages, count);
}

static bool inflate(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    struct virtio_balloon *b = (struct virtio_balloon *)dev;
    if (chain->out_len / 4 > PFNS_PER_CHAIN_MAX) {
        virtio_fail(dev, "request for %u pages at once", chain->out_len / 4);
        return false;
    }
    uint32_t pfns[PFN_BATCH];
    for (size_t at = 0; at + 4 <= chain->out_len;) {
        size_t len = iov_read(chain->out, chain->out_count, at, pfns, sizeof pfns);
        discard_pfns(b, pfns, (unsigned)(len / 4));
        at += sizeof pfns;
    }
    stat_add(&b->inflate_count, 1);
    virtq_push(&dev->queues[index], chain, 0);
    if (chain->out_len <= sizeof pfns)
        return true;
    virtio_kick(dev, index); /* one long chain at a time: the loop has other work */
    return false;
}

static bool deflate(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    stat_add(&((struct virtio_balloon *)dev)->deflate_count, 1);
    virtq_push(&dev->queues[index], chain, 0);
    return true;
}

/* ---- statistics ---- */

static void parse_stats(struct virtio_balloon *b, const struct virtq_chain *chain)
{
    uint8_t raw[STATS_PER_CHAIN_MAX * STAT_SIZE];
    size_t len = iov_read(chain->out, chain->out_count, 0, raw, sizeof raw);
    b->known = 0;
    for (size_t at = 0; at + STAT_SIZE <= len; at += STAT_SIZE) {
        uint16_t tag = load_le16(raw + at);
        if (tag >= VIRTIO_BALLOON_STAT_COUNT)
            continue;
        b->known |= 1u << tag;
        b->values[tag] = load_le64(raw + at + 2);
    }
}

static bool take_stats(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    struct virtio_balloon *b = (struct virtio_balloon *)dev;
    if (b->stats_held)
        virtq_push(&dev->queues[index], &b->stats_chain, 0);
    parse_stats(b, chain);
    stat_add(&b->stats_updates_count, 1);
    b->stats_chain = (struct virtq_chain){.head = chain->head}; /* its buffers are not looked at again */
    b->stats_held = true;
    return true;
}

static void arm_timer(struct virtio_balloon *b)
{
    loop_timer_set(b->timer, b->interval_s * UINT64_C(1000000000));
}

static void on_timer(void *arg)
{
    struct virtio_balloon *b = arg;
    pthread_mutex_lock(&b->dev.lock);
    if (virtio_live(&b->dev) && b->stats_held) {
        b->stats_held = false;
        virtq_push(&b->dev.queues[STATS], &b->stats_chain, 0); /* the driver answers with fresh ones */
        virtio_signal(&b->dev, STATS);
    }
    arm_timer(b);
    pthread_mutex_unlock(&b->dev.lock);
}

/* ---- free pages: hinted (one run at the host's wish) and reported (all the time) ---- */

static void discard_buffers(struct virtio_balloon *b, const struct virtq_chain *chain, uint64_t *freed, uint64_t *fails)
{
    for (unsigned i = 0; i < chain->in_count; i++) {
        bool done = discard(b, mem_gpa_of(b->dev.host.mem, chain->in[i].iov_base), chain->in[i].iov_len);
        stat_add(done ? freed : fails, done ? chain->in[i].iov_len : 1);
    }
}

static bool report(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    struct virtio_balloon *b = (struct virtio_balloon *)dev;
    stat_add(&b->free_page_report_count, 1);
    discard_buffers(b, chain, &b->free_page_report_freed, &b->free_page_report_fails);
    virtq_push_head(&dev->queues[index], chain->head, 0);
    return true;
}

static void set_host_cmd(struct virtio_balloon *b, uint32_t cmd)
{
    b->host_cmd = cmd;
    store_le32(b->dev.config + C_HINT_CMD, cmd);
    virtio_config_changed(&b->dev);
}

static void hear_guest_cmd(struct virtio_balloon *b, uint32_t cmd)
{
    b->guest_cmd = cmd;
    b->guest_cmd_known = true;
    if (cmd == HINT_STOP && b->ack_on_stop && b->host_cmd > HINT_DONE)
        set_host_cmd(b, HINT_DONE);
}

static bool hint(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    struct virtio_balloon *b = (struct virtio_balloon *)dev;
    uint8_t cmd[4];
    stat_add(&b->free_page_hint_count, 1);
    if (iov_read(chain->out, chain->out_count, 0, cmd, sizeof cmd) == sizeof cmd)
        hear_guest_cmd(b, load_le32(cmd));
    if (b->guest_cmd_known && b->guest_cmd == b->host_cmd && b->host_cmd > HINT_DONE)
        discard_buffers(b, chain, &b->free_page_hint_freed, &b->free_page_hint_fails);
    virtq_push_head(&dev->queues[index], chain->head, 0);
    return true;
}

/* ---- class ---- */

static void balloon_kicked(struct virtio_device *dev, unsigned index)
{
    static virtio_serve_fn *const serve[] = {
        [INFLATE] = inflate, [DEFLATE] = deflate, [STATS] = take_stats, [HINTING] = hint, [REPORTING] = report};
    enum role role = role_of(dev, index);
    if (role != NO_ROLE)
        virtio_serve(dev, index, serve[role]);
}

static void balloon_start(struct virtio_device *dev)
{
    (void)dev;
}

static void balloon_reset(struct virtio_device *dev)
{
    struct virtio_balloon *b = (struct virtio_balloon *)dev;
    b->stats_held = false;
    b->known = 0;
    b->host_cmd = HINT_STOP;
    b->guest_cmd_known = false;
    store_le32(dev->config + C_ACTUAL, 0);
    store_le32(dev->config + C_HINT_CMD, HINT_STOP);
}

static void balloon_config_write(struct virtio_device *dev, unsigned offset, const void *data, unsigned len)
{
    if (offset >= C_ACTUAL && offset + len <= C_ACTUAL + 4)
        memcpy(dev->config + offset, data, len);
}

static void balloon_free(struct virtio_device *dev)
{
    loop_remove(((struct virtio_balloon *)dev)->timer);
    virtio_release(dev);
    free(dev);
}

#define STAT(field) {#field, offsetof(struct virtio_balloon, field)}
static const struct virtio_stat balloon_stats[] = {STAT(inflate_count),
                                                   STAT(deflate_count),
                                                   STAT(stats_updates_count),
                                                   STAT(stats_update_fails),
                                                   STAT(event_fails),
                                                   STAT(free_page_report_count),
                                                   STAT(free_page_report_freed),
                                                   STAT(free_page_report_fails),
                                                   STAT(free_page_hint_count),
                                                   STAT(free_page_hint_freed),
                                                   STAT(free_page_hint_fails),
                                                   STAT(inflated_pages),
                                                   STAT(discard_fails),
                                                   {0}};

const struct virtio_class virtio_balloon = {
    .name = "virtio-balloon",
    .type = 5,
    .pci_class = 0x00ff00, /* no class that PCI knows */
    .stats = balloon_stats,
    .start = balloon_start,
    .kicked = balloon_kicked,
    .config_write = balloon_config_write,
    .reset = balloon_reset,
    .free = balloon_free,
};

static uint64_t features_for(const struct virtio_balloon_config *config)
{
    return (config->deflate_on_oom ? VIRTIO_FEATURE(F_DEFLATE_ON_OOM) : 0) |
           (config->stats_interval_s ? VIRTIO_FEATURE(F_STATS_VQ) : 0) |
           (config->free_page_hinting ? VIRTIO_FEATURE(F_FREE_PAGE_HINT) : 0) |
           (config->free_page_reporting ? VIRTIO_FEATURE(F_REPORTING) : 0);
}

static int check_target(const struct mem *mem, uint32_t target_mib, struct err *err)
{
    uint64_t most = mem_size(mem) >> 20;
    if (target_mib <= most)
        return 0;
    return err_say(err, EINVAL, "balloon of %u MiB is larger than the guest's memory of %llu MiB", target_mib,
                   (unsigned long long)most);
}

int virtio_balloon_create(const struct virtio_balloon_config *config, const struct virtio_host *host,
                          struct virtio_device **ret_dev, struct err *err)
{
    int r = check_target(host->mem, config->target_mib, err);
    if (r < 0)
        return r;
    struct virtio_balloon *b = calloc(1, sizeof *b);
    if (!b)
        return err_set(err, ENOMEM, "virtio-balloon");
    static const uint16_t sizes[QUEUES_MAX] = {QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE};
    struct virtio_setup setup = {
        .id = config->id ? config->id : "balloon",
        .features = features_for(config),
        .queue_count = 2u + (config->stats_interval_s > 0) + config->free_page_hinting + config->free_page_reporting,
        .queue_sizes = sizes,
        .config_len = CONFIG_LEN};
    r = virtio_init(&b->dev, &virtio_balloon, host, &setup, err);
    if (r < 0) {
        free(b);
        return r;
    }
    store_le32(b->dev.config + C_NUM_PAGES, config->target_mib * PAGES_PER_MIB);
    b->interval_s = config->stats_interval_s;
    b->timer = loop_add_timer(host->loop, on_timer, b);
    r = b->timer ? virtio_attach(&b->dev, err) : err_set(err, ENOMEM, "virtio-balloon");
    if (r < 0) {
        balloon_free(&b->dev);
        return r;
    }
    if (b->interval_s)
        arm_timer(b);
    *ret_dev = &b->dev;
    return 0;
}

/* ---- the host's wishes ---- */

static bool offers(const struct virtio_device *dev, unsigned feature)
{
    return dev->offered & VIRTIO_FEATURE(feature);
}

int virtio_balloon_set_target(struct virtio_device *dev, uint32_t target_mib, struct err *err)
{
    int r = check_target(dev->host.mem, target_mib, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&dev->lock);
    store_le32(dev->config + C_NUM_PAGES, target_mib * PAGES_PER_MIB);
    virtio_config_changed(dev);
    pthread_mutex_unlock(&dev->lock);
    return 0;
}

int virtio_balloon_stats(struct virtio_device *dev, struct virtio_balloon_stats *ret_stats, struct err *err)
{
    struct virtio_balloon *b = (struct virtio_balloon *)dev;
    if (!offers(dev, F_STATS_VQ))
        return err_say(err, ENOTSUP, "balloon statistics are not enabled");
    pthread_mutex_lock(&dev->lock);
    *ret_stats = (struct virtio_balloon_stats){.target_pages = load_le32(dev->config + C_NUM_PAGES),
                                               .actual_pages = load_le32(dev->config + C_ACTUAL),
                                               .known = b->known};
    memcpy(ret_stats->value, b->values, sizeof b->values);
    pthread_mutex_unlock(&dev->lock);
    ret_stats->target_mib = ret_stats->target_pages / PAGES_PER_MIB;
    ret_stats->actual_mib = ret_stats->actual_pages / PAGES_PER_MIB;
    return 0;
}

int virtio_balloon_set_stats_interval(struct virtio_device *dev, uint32_t interval_s, struct err *err)
{
    struct virtio_balloon *b = (struct virtio_balloon *)dev;
    if (offers(dev, F_STATS_VQ) != !!interval_s)
        return err_say(err, ENOTSUP, "balloon statistics cannot be switched on or off after start");
    pthread_mutex_lock(&dev->lock);
    b->interval_s = interval_s;
    if (interval_s)
        arm_timer(b);
    pthread_mutex_unlock(&dev->lock);
    return 0;
}

static int need_hinting(const struct virtio_device *dev, struct err *err)
{
    return offers(dev, F_FREE_PAGE_HINT) ? 0 : err_say(err, ENOTSUP, "free page hinting is not enabled");
}

int virtio_balloon_hinting_start(struct virtio_device *dev, bool acknowledge_on_stop, struct err *err)
{
    struct virtio_balloon *b = (struct virtio_balloon *)dev;
    int r = need_hinting(dev, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&dev->lock);
    b->ack_on_stop = acknowledge_on_stop;
    b->last_run = b->last_run < HINT_DONE || b->last_run == UINT32_MAX ? HINT_DONE + 1 : b->last_run + 1;
    set_host_cmd(b, b->last_run);
    pthread_mutex_unlock(&dev->lock);
    return 0;
}

int virtio_balloon_hinting_stop(struct virtio_device *dev, struct err *err)
{
    int r = need_hinting(dev, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&dev->lock);
    set_host_cmd((struct virtio_balloon *)dev, HINT_DONE);
    pthread_mutex_unlock(&dev->lock);
    return 0;
}

int virtio_balloon_hinting_status(struct virtio_device *dev, struct virtio_balloon_hinting *ret, struct err *err)
{
    struct virtio_balloon *b = (struct virtio_balloon *)dev;
    int r = need_hinting(dev, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&dev->lock);
    *ret = (struct virtio_balloon_hinting){
        .host_cmd = b->host_cmd, .guest_cmd = b->guest_cmd, .guest_cmd_known = b->guest_cmd_known};
    pthread_mutex_unlock(&dev->lock);
    return 0;
}
