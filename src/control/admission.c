/* Admission: what the host has is promised once. */
#include "control/admission.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/own.h"
#include "control/json.h"

#define MIB (UINT64_C(1) << 20)
/* Measured, see docs/algorithms/allocation.md. */
#define OVERHEAD_BYTES (64 * MIB)
#define OVERHEAD_VCPU_BYTES (8 * MIB)
#define OVERHEAD_SHARE 64 /* of guest memory: page tables, dirty logs, translations */

/* The number behind `name` in a file of lines; "": of the first line. */
static int read_number(const char *path, const char *name, uint64_t *ret_value)
{
    char line[256];
    char *end = line;
    FILE *file = fopen(path, "re");
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file))
        found = !strncmp(line, name, strlen(name));
    if (file)
        fclose(file);
    if (found)
        *ret_value = strtoull(line + strlen(name), &end, 10);
    return found && end != line + strlen(name) ? 0 : -ENOENT;
}

/* Inside of a container the host is as large as its cgroup's limit. */
static uint64_t cgroup_memory_max(void)
{
    uint64_t limit;
    if (!read_number("/sys/fs/cgroup/memory.max", "", &limit))
        return limit;
    if (!read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", "", &limit))
        return limit;
    return UINT64_MAX;
}

int admission_host_read(uint64_t reserve_bytes, double memory_overcommit, double cpu_overcommit,
                        struct admission_host *ret_host, struct err *err)
{
    uint64_t total_kib;
    cpu_set_t cpus;
    if (read_number("/proc/meminfo", "MemTotal:", &total_kib) < 0)
        return err_say(err, EIO, "/proc/meminfo: there is no MemTotal");
    if (sched_getaffinity(0, sizeof cpus, &cpus) < 0)
        return err_set(err, errno, "CPUs of this process");
    uint64_t memory = total_kib * 1024, limit = cgroup_memory_max();
    memory = limit < memory ? limit : memory;
    *ret_host = (struct admission_host){
        .memory_bytes = memory,
        .reserve_bytes = reserve_bytes ? reserve_bytes : 256 * MIB + memory / 32,
        .cpus = (unsigned)CPU_COUNT(&cpus),
        .memory_overcommit = memory_overcommit > 0 ? memory_overcommit : ADMISSION_MEMORY_OVERCOMMIT,
        .cpu_overcommit = cpu_overcommit > 0 ? cpu_overcommit : ADMISSION_CPU_OVERCOMMIT,
    };
    return 0;
}

struct admission_share admission_capacity(const struct admission_host *host)
{
    uint64_t memory = host->memory_bytes > host->reserve_bytes ? host->memory_bytes - host->reserve_bytes : 0;
    return (struct admission_share){.memory_bytes = (uint64_t)((double)memory * host->memory_overcommit),
                                    .cpus = (uint64_t)(host->cpus * host->cpu_overcommit)};
}

struct admission_share admission_need(uint64_t memory_bytes, unsigned cpus)
{
    return (struct admission_share){
        .memory_bytes = memory_bytes + memory_bytes / OVERHEAD_SHARE + OVERHEAD_BYTES + cpus * OVERHEAD_VCPU_BYTES,
        .cpus = cpus};
}

/* Of all promises but that of `except` (NULL: none excepted). */
static struct admission_share sum(const json_t *document, const char *except)
{
    struct admission_share all = {0};
    json_t *promises = json_object_get(document, "promises");
    for (void *iter = json_object_iter(promises); iter; iter = json_object_iter_next(promises, iter)) {
        const json_t *one = json_object_iter_value(iter);
        if (except && !strcmp(json_object_iter_key(iter), except))
            continue;
        all.memory_bytes += (uint64_t)json_number(one, "memory_bytes");
        all.cpus += (uint64_t)json_number(one, "cpus");
    }
    return all;
}

struct admission_share admission_promised(const json_t *document)
{
    return sum(document, NULL);
}

static int refuse_memory(const struct admission_share *capacity, uint64_t used, uint64_t wanted, struct err *err)
{
    return err_say(err, ENOSPC,
                   "not enough memory: %llu MiB are needed, %llu of %llu MiB are free; stop an instance, give this one less, "
                   "or start polderd with a higher --memory-overcommit",
                   (unsigned long long)(wanted / MIB),
                   (unsigned long long)((capacity->memory_bytes > used ? capacity->memory_bytes - used : 0) / MIB),
                   (unsigned long long)(capacity->memory_bytes / MIB));
}

int admission_promise(const struct admission_host *host, const json_t *document, const char *id,
                      const struct admission_share *share, json_t **ret_document, struct err *err)
{
    struct admission_share capacity = admission_capacity(host), used = sum(document, id);
    if (share->memory_bytes > capacity.memory_bytes || used.memory_bytes > capacity.memory_bytes - share->memory_bytes)
        return refuse_memory(&capacity, used.memory_bytes, share->memory_bytes, err);
    if (share->cpus > capacity.cpus || used.cpus > capacity.cpus - share->cpus)
        return err_say(err, ENOSPC,
                       "not enough CPUs: %llu are asked for, %llu of %llu are promised; stop an instance, give this one "
                       "fewer, or start polderd with a higher --cpu-overcommit",
                       (unsigned long long)share->cpus, (unsigned long long)used.cpus, (unsigned long long)capacity.cpus);
    own_json json_t *changed = document ? json_deep_copy(document) : json_pack("{s:{}}", "promises");
    json_t *promise = json_pack("{s:I, s:I}", "memory_bytes", (json_int_t)share->memory_bytes, "cpus",
                                (json_int_t)share->cpus);
    if (json_object_set_new(json_object_get(changed, "promises"), id, promise) < 0)
        return err_set(err, ENOMEM, "admission");
    *ret_document = TAKE(changed);
    return 0;
}

json_t *admission_release(const json_t *document, const char *id)
{
    if (!json_object_get(json_object_get(document, "promises"), id))
        return NULL;
    json_t *changed = json_deep_copy(document);
    json_object_del(json_object_get(changed, "promises"), id);
    return changed;
}
