#include "agent/stats.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define SECTOR_BYTES 512 /* of /proc/diskstats, whatever the disk's is */
#define ENTRIES_MAX 64

static json_t *number(uint64_t v)
{
    return json_integer((json_int_t)v);
}

/* /proc/stat, "cpu": user, nice, system, idle, iowait, irq, softirq, steal in ticks. */
static json_t *cpu_json(void)
{
    uint64_t t[8] = {0};
    FILE *f = fopen("/proc/stat", "re");
    if (f) {
        (void)!fscanf(f, "cpu %lu %lu %lu %lu %lu %lu %lu %lu", &t[0], &t[1], &t[2], &t[3], &t[4], &t[5], &t[6], &t[7]);
        fclose(f);
    }
    uint64_t tick_us = 1000000 / (uint64_t)sysconf(_SC_CLK_TCK);
    return json_pack("{s:i, s:o, s:o, s:o, s:o, s:o}", "count", (int)sysconf(_SC_NPROCESSORS_ONLN), "user_us",
                     number((t[0] + t[1]) * tick_us), "system_us", number((t[2] + t[5] + t[6]) * tick_us), "idle_us",
                     number(t[3] * tick_us), "wait_us", number(t[4] * tick_us), "steal_us", number(t[7] * tick_us));
}

static json_t *memory_json(void)
{
    json_t *json = json_object();
    FILE *f = fopen("/proc/meminfo", "re");
    static const struct {
        const char *name, *key;
    } lines[] = {{"MemTotal", "total_bytes"},   {"MemFree", "free_bytes"}, {"MemAvailable", "available_bytes"},
                 {"Cached", "cached_bytes"},    {"SwapTotal", "swap_total_bytes"}, {"SwapFree", "swap_free_bytes"}};
    char line[128], name[64];
    uint64_t kib;
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%63[^:]: %lu", name, &kib) != 2)
            continue;
        for (unsigned i = 0; i < sizeof lines / sizeof lines[0]; i++)
            if (!strcmp(name, lines[i].name))
                json_object_set_new(json, lines[i].key, number(kib * 1024));
    }
    if (f)
        fclose(f);
    return json;
}

static json_t *disks_json(void)
{
    json_t *json = json_array();
    FILE *f = fopen("/proc/diskstats", "re");
    char line[256], name[32];
    uint64_t reads, read_sectors, writes, written_sectors;
    while (f && json_array_size(json) < ENTRIES_MAX && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%*u %*u %31s %lu %*u %lu %*u %lu %*u %lu", name, &reads, &read_sectors, &writes,
                   &written_sectors) != 5 ||
            strncmp(name, "loop", 4) == 0 || strncmp(name, "ram", 3) == 0)
            continue;
        json_array_append_new(json, json_pack("{s:s, s:o, s:o, s:o, s:o}", "name", name, "reads", number(reads),
                                              "read_bytes", number(read_sectors * SECTOR_BYTES), "writes",
                                              number(writes), "written_bytes", number(written_sectors * SECTOR_BYTES)));
    }
    if (f)
        fclose(f);
    return json;
}

static json_t *networks_json(void)
{
    json_t *json = json_array();
    FILE *f = fopen("/proc/net/dev", "re");
    char line[512], name[32];
    uint64_t in, in_packets, out, out_packets;
    while (f && json_array_size(json) < ENTRIES_MAX && fgets(line, sizeof line, f)) {
        if (sscanf(line, " %31[^:]: %lu %lu %*u %*u %*u %*u %*u %*u %lu %lu", name, &in, &in_packets, &out,
                   &out_packets) != 5 ||
            !strcmp(name, "lo"))
            continue;
        json_array_append_new(json, json_pack("{s:s, s:o, s:o, s:o, s:o}", "name", name, "rx_bytes", number(in),
                                              "rx_packets", number(in_packets), "tx_bytes", number(out), "tx_packets",
                                              number(out_packets)));
    }
    if (f)
        fclose(f);
    return json;
}

static json_t *root_json(void)
{
    struct statvfs fs = {0};
    statvfs("/", &fs);
    return json_pack("{s:o, s:o}", "size_bytes", number((uint64_t)fs.f_blocks * fs.f_frsize), "available_bytes",
                     number((uint64_t)fs.f_bavail * fs.f_frsize));
}

json_t *stats_json(void)
{
    struct sysinfo info = {0};
    sysinfo(&info);
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "uptime_us", number((uint64_t)info.uptime * 1000000),
                     "processes", number(info.procs), "cpu", cpu_json(), "memory", memory_json(), "root", root_json(),
                     "disks", disks_json(), "networks", networks_json());
}
