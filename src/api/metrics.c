/* One counter for each route and status that was answered, one row for each kind of operation. */
#include "api/metrics.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/metrics_instances.h"

#define KINDS 48
#define BUCKETS 8

static const unsigned statuses[] = {101, 200, 201, 202, 204, 400, 401, 403, 404, 405, 409, 413, 500, 503};
#define STATUSES (sizeof statuses / sizeof *statuses)
static const double bounds_s[BUCKETS] = {0.01, 0.05, 0.15, 0.5, 1, 5, 30, 300};

struct kind {
    char name[32];
    uint64_t buckets[BUCKETS], count, failed;
    int64_t sum_ns;
};

struct metrics {
    pthread_mutex_t lock;
    struct kind kinds[KINDS];
    atomic_ullong (*requests)[STATUSES + 1]; /* by route, the last row for requests to none; the last column: other statuses */
};

int metrics_create(struct metrics **ret_metrics, struct err *err)
{
    struct metrics *metrics = calloc(1, sizeof *metrics);
    if (metrics)
        metrics->requests = calloc(route_count() + 1, sizeof *metrics->requests);
    if (!metrics || !metrics->requests) {
        free(metrics);
        return err_set(err, ENOMEM, "metrics");
    }
    pthread_mutex_init(&metrics->lock, NULL);
    *ret_metrics = metrics;
    return 0;
}

void metrics_free(struct metrics *metrics)
{
    if (!metrics)
        return;
    pthread_mutex_destroy(&metrics->lock);
    free(metrics->requests);
    free(metrics);
}

void metrics_count_request(struct metrics *metrics, const struct route *route, unsigned status)
{
    size_t column = 0;
    int row = route_index(route);
    while (column < STATUSES && statuses[column] != status)
        column++;
    if (metrics)
        atomic_fetch_add(&metrics->requests[row < 0 ? route_count() : (unsigned)row][column], 1);
}

static struct kind *kind_of(struct metrics *metrics, const char *name)
{
    for (struct kind *k = metrics->kinds; k < metrics->kinds + KINDS; k++) {
        if (!k->name[0])
            snprintf(k->name, sizeof k->name, "%s", name);
        if (!strcmp(k->name, name))
            return k;
    }
    return NULL;
}

void metrics_count_operation(struct metrics *metrics, const char *name, bool succeeded, int64_t duration_ns)
{
    if (!metrics)
        return;
    pthread_mutex_lock(&metrics->lock);
    struct kind *kind = kind_of(metrics, name);
    for (int i = 0; kind && i < BUCKETS; i++)
        kind->buckets[i] += (double)duration_ns / 1e9 <= bounds_s[i];
    if (kind) {
        kind->count++;
        kind->failed += !succeeded;
        kind->sum_ns += duration_ns;
    }
    pthread_mutex_unlock(&metrics->lock);
}

static void write_requests(FILE *out, struct metrics *metrics)
{
    fputs("# HELP polder_api_requests_total Requests answered, by route and status.\n"
          "# TYPE polder_api_requests_total counter\n", out);
    for (unsigned row = 0; row <= route_count(); row++) {
        const struct route *route = route_at(row);
        for (size_t i = 0; i <= STATUSES; i++) {
            unsigned long long n = atomic_load(&metrics->requests[row][i]);
            if (n)
                fprintf(out, "polder_api_requests_total{method=\"%s\",route=\"%s\",status=\"%u\"} %llu\n",
                        route ? route->method : "", route ? route->path : "", i < STATUSES ? statuses[i] : 0, n);
        }
    }
}

static void write_kind(FILE *out, const struct kind *kind)
{
    for (int i = 0; i < BUCKETS; i++)
        fprintf(out, "polder_operation_seconds_bucket{kind=\"%s\",le=\"%g\"} %llu\n", kind->name, bounds_s[i],
                (unsigned long long)kind->buckets[i]);
    fprintf(out,
            "polder_operation_seconds_bucket{kind=\"%s\",le=\"+Inf\"} %llu\n"
            "polder_operation_seconds_sum{kind=\"%s\"} %.6f\npolder_operation_seconds_count{kind=\"%s\"} %llu\n",
            kind->name, (unsigned long long)kind->count, kind->name, (double)kind->sum_ns / 1e9, kind->name,
            (unsigned long long)kind->count);
}

static void write_operations(FILE *out, struct metrics *metrics)
{
    fputs("# HELP polder_operation_seconds From the request to the operation's end.\n"
          "# TYPE polder_operation_seconds histogram\n", out);
    pthread_mutex_lock(&metrics->lock);
    for (const struct kind *k = metrics->kinds; k < metrics->kinds + KINDS && k->name[0]; k++)
        write_kind(out, k);
    fputs("# HELP polder_operations_failed_total Operations that failed or were cancelled.\n"
          "# TYPE polder_operations_failed_total counter\n", out);
    for (const struct kind *k = metrics->kinds; k < metrics->kinds + KINDS && k->name[0]; k++)
        fprintf(out, "polder_operations_failed_total{kind=\"%s\"} %llu\n", k->name, (unsigned long long)k->failed);
    pthread_mutex_unlock(&metrics->lock);
}

static void write_process(FILE *out, const struct platform *platform)
{
    unsigned long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");
    if (statm && fscanf(statm, "%*u %lu", &pages) != 1) /* NOLINT(cert-err34-c): the kernel's number */
        pages = 0;
    if (statm)
        fclose(statm);
    fprintf(out,
            "# HELP polder_info The version that runs.\n# TYPE polder_info gauge\npolder_info{version=\"%s\"} 1\n"
            "# HELP polder_resident_memory_bytes Resident memory of polderd.\n"
            "# TYPE polder_resident_memory_bytes gauge\npolder_resident_memory_bytes %llu\n"
            "# HELP polder_start_time_seconds When polderd started, since 1970.\n"
            "# TYPE polder_start_time_seconds gauge\npolder_start_time_seconds %lld\n",
            POLDER_VERSION, (unsigned long long)pages * (unsigned long long)sysconf(_SC_PAGESIZE),
            (long long)platform->started_at);
}

char *metrics_text(struct platform *platform)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (!out)
        return NULL;
    write_process(out, platform);
    metrics_write_instances(out, platform);
    write_requests(out, platform->metrics);
    write_operations(out, platform->metrics);
    fclose(out);
    return text;
}
