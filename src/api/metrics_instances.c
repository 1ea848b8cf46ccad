#include "api/metrics_instances.h"

#include <jansson.h>
#include <string.h>

#include "control/instance.h"
#include "store/store.h"

#define SHOWN_MAX 1000 /* instances with numbers of their own: bounds the answer and the time that it takes */

static const char *const states[] = {"created", "starting", "running", "paused", "stopping", "stopped", "failed"};
#define STATES (sizeof states / sizeof *states)

/* What one instance uses: members of its stats. */
static const struct {
    const char *name, *type, *help, *member;
    double unit;
} rows[] = {
    {"cpu_seconds_total", "counter", "CPU time.", "cpu_usage_ns", 1e-9},
    {"memory_bytes", "gauge", "Memory of the host.", "memory_bytes", 1},
    {"memory_limit_bytes", "gauge", "Memory of the guest.", "memory_limit_bytes", 1},
    {"network_receive_bytes_total", "counter", "Received by the guest.", "net_rx_bytes", 1},
    {"network_transmit_bytes_total", "counter", "Sent by the guest.", "net_tx_bytes", 1},
    {"disk_read_bytes_total", "counter", "Read from disks by the guest.", "disk_read_bytes", 1},
    {"disk_written_bytes_total", "counter", "Written to disks by the guest.", "disk_write_bytes", 1},
};

static const char *text_of(const json_t *object, const char *member)
{
    const char *text = json_string_value(json_object_get(object, member));
    return text ? text : "";
}

static const char *state_of(const json_t *doc)
{
    return text_of(json_object_get(doc, "status"), "state");
}

static void write_states(FILE *out, const struct store_list *docs)
{
    unsigned counts[STATES] = {0};
    for (size_t i = 0; i < docs->count; i++)
        for (size_t s = 0; s < STATES; s++)
            counts[s] += !strcmp(states[s], state_of(docs->docs[i].value));
    fputs("# HELP polder_instances Instances by state.\n# TYPE polder_instances gauge\n", out);
    for (size_t s = 0; s < STATES; s++)
        fprintf(out, "polder_instances{state=\"%s\"} %u\n", states[s], counts[s]);
}

/* [{"name", "id", and the stats}] of those that have a machine. */
static json_t *collect(struct instances *instances, const struct store_list *docs)
{
    json_t *list = json_array(), *stats;
    for (size_t i = 0; i < docs->count && json_array_size(list) < SHOWN_MAX; i++) {
        const json_t *doc = docs->docs[i].value;
        bool has_machine = !strcmp(state_of(doc), "running") || !strcmp(state_of(doc), "paused");
        if (!has_machine || instance_stats(instances, text_of(doc, "name"), false, &stats, NULL) < 0)
            continue;
        json_object_set(stats, "name", json_object_get(doc, "name"));
        json_object_set(stats, "id", json_object_get(doc, "id"));
        json_array_append_new(list, stats);
    }
    return list;
}

/* Names and ids need no escapes: a-z, 0-9 and '-'. */
static void write_row(FILE *out, size_t row, const json_t *list)
{
    size_t at;
    json_t *stats;
    fprintf(out, "# HELP polder_instance_%s %s\n# TYPE polder_instance_%s %s\n", rows[row].name, rows[row].help, rows[row].name,
            rows[row].type);
    json_array_foreach (list, at, stats) {
        const json_t *value = json_object_get(stats, rows[row].member);
        if (json_is_integer(value))
            fprintf(out, "polder_instance_%s{name=\"%s\",id=\"%s\"} %.16g\n", rows[row].name, text_of(stats, "name"),
                    text_of(stats, "id"), (double)json_integer_value(value) * rows[row].unit);
    }
}

void metrics_write_instances(FILE *out, struct platform *platform)
{
    struct store_list docs;
    if (!platform->store || store_list_prefix(platform->store, "instances/", &docs, NULL) < 0)
        return;
    write_states(out, &docs);
    json_t *list = platform->instances ? collect(platform->instances, &docs) : NULL;
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++)
        write_row(out, row, list);
    json_decref(list);
    store_list_clear(&docs);
}
