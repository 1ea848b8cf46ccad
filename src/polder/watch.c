#include "polder/watch.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "polder/cli.h"
#include "polder/text.h"

/* ---- stats ---- */

static void show_percent(const json_t *document, const json_t *member, char *text, size_t size)
{
    (void)document;
    if (json_is_real(member))
        snprintf(text, size, "%.1f %%", json_real_value(member));
}

/* Two sizes: "3 MiB / 256 MiB" */
static void show_pair(const json_t *document, const char *first, const char *second, char *text, size_t size)
{
    char a[TEXT_SHORT] = "-", b[TEXT_SHORT] = "-";
    cli_show_size(document, cli_member(document, first), a, sizeof a);
    cli_show_size(document, cli_member(document, second), b, sizeof b);
    snprintf(text, size, "%s / %s", a, b);
}

static void show_memory(const json_t *document, const json_t *member, char *text, size_t size)
{
    (void)member;
    show_pair(document, "memory_bytes", "memory_limit_bytes", text, size);
}

static void show_net(const json_t *document, const json_t *member, char *text, size_t size)
{
    (void)member;
    show_pair(document, "net_rx_bytes", "net_tx_bytes", text, size);
}

static void show_disk(const json_t *document, const json_t *member, char *text, size_t size)
{
    (void)member;
    show_pair(document, "disk_read_bytes", "disk_write_bytes", text, size);
}

static const struct cli_column stats_columns[] = {
    {"NAME", "name", NULL, false},
    {"CPU", "cpu_percent", show_percent, false},
    {"MEMORY", "memory_bytes", show_memory, false},
    {"NET IN / OUT", "net_rx_bytes", show_net, false},
    {"DISK READ / WRITTEN", "disk_read_bytes", show_disk, false},
    {"PROCESSES", "guest.processes", NULL, false},
    {NULL, NULL, NULL, false},
};

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static const json_t *find(const json_t *list, const char *name)
{
    size_t at;
    json_t *document;
    json_array_foreach(list, at, document)
        if (strcmp(cli_text(document, "name"), name) == 0)
            return document;
    return NULL;
}

/* The share of a CPU that it used since `before`, `seconds` ago. */
static void add_percent(json_t *stats, const json_t *before, double seconds)
{
    const json_t *now = json_object_get(stats, "cpu_usage_ns"), *then = json_object_get(before, "cpu_usage_ns");
    if (json_is_integer(now) && json_is_integer(then) && seconds > 0)
        json_object_set_new(stats, "cpu_percent",
                            json_real((double)(json_integer_value(now) - json_integer_value(then)) / 1e7 / seconds));
}

static int add_one(struct cli *cli, json_t *list, const char *name, struct err *err)
{
    json_t *stats = NULL;
    int r = cli_get(cli, &stats, err, "/v1/instances/%s/stats", name);
    if (r < 0)
        return r;
    json_object_set_new(stats, "name", json_string(name));
    json_array_append_new(list, stats);
    return 0;
}

/* Of the operands, or of all that run. */
static int collect(struct cli *cli, json_t *list, struct err *err)
{
    json_t *answer = NULL, *instance;
    size_t at;
    int r = 0;
    for (at = 0; r == 0 && cli_operand(cli, at); at++)
        r = cli_suggest(cli, "/v1/instances", cli_operand(cli, at), add_one(cli, list, cli_operand(cli, at), err), err);
    if (cli_operand(cli, 0))
        return r;
    r = cli_get(cli, &answer, err, "/v1/instances");
    json_array_foreach(cli_array(answer), at, instance) {
        struct err gone; /* between the list and the question */
        if (strcmp(cli_text(instance, "status.state"), "running") == 0)
            (void)!add_one(cli, list, cli_text(instance, "name"), &gone);
    }
    json_decref(answer);
    return r;
}

static int measure(struct cli *cli, json_t **before, double *then, struct err *err)
{
    json_t *list = json_array(), *stats;
    size_t at;
    int r = collect(cli, list, err);
    double now = now_s();
    json_array_foreach(list, at, stats)
        add_percent(stats, find(*before, cli_text(stats, "name")), now - *then);
    json_decref(*before);
    *before = list;
    *then = now;
    return r;
}

/* A first look tells nothing of CPUs: the second, a second later, is the first that is shown. */
int watch_stats(struct cli *cli, struct err *err)
{
    json_t *list = NULL;
    double then = 0;
    bool stream = !cli_has(cli, "no-stream") && cli->output != OUTPUT_JSON && isatty(STDOUT_FILENO);
    int r = measure(cli, &list, &then, err);
    do {
        sleep(1);
        if (r == 0)
            r = measure(cli, &list, &then, err);
        if (r == 0 && stream)
            fputs("\033[H\033[J", stdout);
        if (r == 0)
            r = cli_print_list(cli, list, stats_columns);
        fflush(stdout);
    } while (r == 0 && stream);
    json_decref(list);
    return r;
}

/* ---- events ---- */

#define LINE_MAX_BYTES (4u << 20)

struct events {
    const struct cli *cli;
    char *line; /* owned */
    size_t len;
    bool too_long;
};

static void print_event(const struct cli *cli, const char *data)
{
    json_t *event = json_loads(data, 0, NULL);
    char text[512], time_text[TEXT_SHORT] = "";
    if (cli->output == OUTPUT_JSON) {
        text_print(stdout, data, "");
    } else if (cli->output == OUTPUT_NAME) {
        text_print(stdout, cli_text(event, "name"), "");
    } else {
        cli_show_time(event, json_object_get(event, "time"), time_text, sizeof time_text);
        snprintf(text, sizeof text, "%s  %-10s %-24s %s", time_text, cli_text(event, "kind"), cli_text(event, "name"),
                 cli_text(event, "action"));
        text_print(stdout, text, "");
    }
    putchar('\n');
    json_decref(event);
}

/* Lines of text/event-stream; polderd puts a document into one data line. */
static bool take_events(void *arg, const char *data, size_t len)
{
    struct events *events = arg;
    for (size_t i = 0; i < len; i++) {
        if (data[i] != '\n' && data[i] != '\r') {
            events->too_long = events->len >= LINE_MAX_BYTES - 1;
            if (events->too_long)
                return false;
            events->line[events->len++] = data[i];
            continue;
        }
        events->line[events->len] = '\0';
        events->len = 0;
        if (strncmp(events->line, "data:", 5) == 0)
            print_event(events->cli, events->line + 5 + (events->line[5] == ' '));
    }
    return fflush(stdout) == 0;
}

int watch_events(struct cli *cli, struct err *err)
{
    char path[CLIENT_URL_MAX], range[64] = "";
    struct events events = {.cli = cli, .line = malloc(LINE_MAX_BYTES)};
    const char *kind = cli_value(cli, "kind");
    long since = -1;
    bool follow = cli_has(cli, "follow") || isatty(STDOUT_FILENO);
    int r = events.line ? cli_number(cli, "since", 0, LONG_MAX, &since, err) : err_set(err, ENOMEM, "events");
    if (r == 0)
        r = cli_open(cli, err);
    if (r == 0)
        r = client_path(path, err, kind ? "/v1/events?follow=%d&kind=%s" : "/v1/events?follow=%d", follow, kind);
    if (since >= 0 || !follow)
        snprintf(range, sizeof range, "&since=%ld", since < 0 ? 0 : since);
    if (r == 0)
        snprintf(path + strlen(path), sizeof path - strlen(path), "%s", range);
    if (r == 0)
        r = client_stream(cli->client, path, take_events, &events, err);
    free(events.line);
    return r == 0 && events.too_long ? err_say(err, EPROTO, "an event is longer than any of polderd's") : r;
}
