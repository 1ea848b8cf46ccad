/* ps, inspect, port, logs, stats, events, top-level looks at instances. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "polder/cli.h"
#include "polder/commands.h"
#include "polder/text.h"
#include "polder/watch.h"

/* ---- ps ---- */

static void show_command(const json_t *document, const json_t *member, char *text, size_t size)
{
    char entrypoint[128] = "", command[128] = "";
    cli_show_words(document, cli_member(document, "spec.entrypoint"), entrypoint, sizeof entrypoint);
    cli_show_words(document, member, command, sizeof command);
    snprintf(text, size, "%s%s%s", entrypoint, *entrypoint && *command ? " " : "", command);
}

/* "running for 3 h", "stopped (1)" */
static void show_state(const json_t *document, const json_t *member, char *text, size_t size)
{
    const char *state = json_is_string(member) ? json_string_value(member) : "unknown";
    const json_t *code = cli_member(document, "status.exit_code");
    char age[TEXT_SHORT] = "";
    cli_show_age(document, cli_member(document, "status.started_at"), age, sizeof age);
    if (strcmp(state, "running") == 0 && *age)
        snprintf(text, size, "running for %s", age);
    else if (strcmp(state, "stopped") == 0 && json_is_integer(code))
        snprintf(text, size, "stopped (%lld)", (long long)json_integer_value(code));
    else
        snprintf(text, size, "%s", state);
}

static void port_text(const json_t *port, char *text, size_t size)
{
    const char *address = cli_text(port, "host_address"), *protocol = cli_text(port, "protocol");
    bool is_v6 = strchr(address, ':');
    snprintf(text, size, "%s%.64s%s:%lld->%lld%s", is_v6 ? "[" : "", *address ? address : "*", is_v6 ? "]" : "",
             (long long)json_integer_value(json_object_get(port, "host")), (long long)json_integer_value(json_object_get(port, "guest")),
             strcmp(protocol, "udp") == 0 ? "/udp" : "");
}

static void show_ports(const json_t *document, const json_t *member, char *text, size_t size)
{
    size_t at, used = 0;
    json_t *port;
    (void)document;
    json_array_foreach(member, at, port) {
        char one[128];
        port_text(port, one, sizeof one);
        used += (size_t)snprintf(text + used, size - used, "%s%s", used ? " " : "", one);
        if (used >= size)
            return;
    }
}

static const struct cli_column ps_columns[] = {
    {"NAME", "name", NULL, false},
    {"IMAGE", "spec.image", NULL, false},
    {"COMMAND", "spec.command", show_command, false},
    {"STATE", "status.state", show_state, false},
    {"ADDRESS", "status.addresses", cli_show_words, false},
    {"PORTS", "spec.ports", show_ports, false},
    {"CREATED", "created_at", cli_show_age, true},
    {"CPUS", "spec.cpus", NULL, true},
    {"MEMORY", "spec.memory_bytes", cli_show_size, true},
    {"ENGINE", "status.engine", NULL, true},
    {"PID", "status.pid", NULL, true},
    {"ID", "id", NULL, true},
    {NULL, NULL, NULL, false},
};

/* "state=running", "image=debian", "label=k=v", "name=web" */
static bool matches(const json_t *instance, const char *filter)
{
    static const struct {
        const char *key, *member;
    } keys[] = {{"state=", "status.state"}, {"image=", "spec.image"}, {"name=", "name"}};
    for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++) {
        size_t len = strlen(keys[i].key);
        if (strncmp(filter, keys[i].key, len) == 0)
            return strcmp(cli_text(instance, keys[i].member), filter + len) == 0;
    }
    const char *label = filter + strlen("label="), *equals = strchr(label, '=');
    json_t *value = json_object_getn(cli_member(instance, "spec.labels"), label, equals ? (size_t)(equals - label) : strlen(label));
    return value && (!equals || (json_is_string(value) && strcmp(json_string_value(value), equals + 1) == 0));
}

static bool is_shown(const struct cli *cli, const json_t *instance)
{
    const char *filter;
    bool by_state = false;
    for (size_t at = 0; (filter = args_next(&cli->args, "filter", &at)) != NULL;) {
        if (!matches(instance, filter))
            return false;
        by_state |= strncmp(filter, "state=", 6) == 0;
    }
    const char *state = cli_text(instance, "status.state");
    bool lies_still = strcmp(state, "stopped") == 0 || strcmp(state, "created") == 0 || strcmp(state, "failed") == 0;
    return by_state || cli_has(cli, "all") || !lies_still;
}

static int check_filters(const struct cli *cli, struct err *err)
{
    const char *filter;
    for (size_t at = 0; (filter = args_next(&cli->args, "filter", &at)) != NULL;)
        if (strncmp(filter, "state=", 6) != 0 && strncmp(filter, "image=", 6) != 0 && strncmp(filter, "name=", 5) != 0 &&
            strncmp(filter, "label=", 6) != 0)
            return err_say(err, EINVAL, "--filter: '%s' is none of state=, image=, name=, label=", filter);
    return 0;
}

/* All instances, with what is shown of them and what filters look at. */
static int list_instances(struct cli *cli, json_t **ret_list, struct err *err)
{
    static const char also[] = "spec.entrypoint,status.state,status.exit_code,status.started_at";
    char fields[512];
    if (cli->output == OUTPUT_JSON)
        return cli_get(cli, ret_list, err, "/v1/instances");
    cli_list_fields(cli, ps_columns, fields, sizeof fields);
    size_t used = strlen(fields);
    snprintf(fields + used, sizeof fields - used, ",%s%s", also, cli_has(cli, "filter") ? ",name,spec.image,spec.labels" : "");
    return cli_get(cli, ret_list, err, "/v1/instances?fields=%s", fields);
}

static int run_ps(struct cli *cli, struct err *err)
{
    json_t *answer = NULL, *shown = json_array(), *instance;
    size_t at;
    int r = check_filters(cli, err);
    if (r == 0)
        r = list_instances(cli, &answer, err);
    json_array_foreach(cli_array(answer), at, instance)
        if (is_shown(cli, instance))
            json_array_append(shown, instance);
    if (r == 0)
        r = cli_print_list(cli, shown, ps_columns);
    json_decref(shown);
    json_decref(answer);
    return r;
}

/* ---- inspect, port ---- */

static int run_inspect(struct cli *cli, struct err *err)
{
    const char *name;
    int r = 0;
    json_t *list = json_array();
    for (size_t at = 0; r == 0 && (name = cli_operand(cli, at)) != NULL; at++) {
        json_t *instance = NULL;
        r = cli_get(cli, &instance, err, "/v1/instances/%s", name);
        r = cli_suggest(cli, "/v1/instances", name, r, err);
        if (r == 0)
            json_array_append_new(list, instance);
    }
    if (r == 0 && cli->output == OUTPUT_NAME)
        r = cli_print_list(cli, list, ps_columns);
    else if (r == 0)
        r = cli_print_document(cli, json_array_size(list) == 1 ? json_array_get(list, 0) : list);
    json_decref(list);
    return r;
}

static const struct cli_column port_columns[] = {
    {"PORT", "guest", NULL, false},
    {"PROTOCOL", "protocol", NULL, false},
    {"HOST ADDRESS", "host_address", NULL, false},
    {"HOST PORT", "host", NULL, false},
    {NULL, NULL, NULL, false},
};

static int run_port(struct cli *cli, struct err *err)
{
    json_t *instance = NULL, *none = json_array();
    int r = cli_get(cli, &instance, err, "/v1/instances/%s", cli_operand(cli, 0));
    if (r == 0) {
        const json_t *ports = cli_member(instance, "spec.ports");
        r = cli_print_list(cli, json_is_array(ports) ? ports : none, port_columns);
    }
    json_decref(none);
    json_decref(instance);
    return cli_suggest(cli, "/v1/instances", cli_operand(cli, 0), r, err);
}

/* ---- logs ---- */

static bool write_raw(void *arg, const char *data, size_t len)
{
    (void)arg;
    return fwrite(data, 1, len, stdout) == len && fflush(stdout) == 0;
}

static int run_logs(struct cli *cli, struct err *err)
{
    char path[CLIENT_URL_MAX];
    const char *name = cli_operand(cli, 0), *source = cli_value(cli, "source");
    long tail = -1;
    int r = cli_number(cli, "tail", 0, 1000000, &tail, err);
    if (r == 0)
        r = client_path(path, err, "/v1/instances/%s/logs?follow=%d&source=%s", name, cli_has(cli, "follow"), source ? source : "main");
    if (r == 0 && tail >= 0)
        snprintf(path + strlen(path), sizeof path - strlen(path), "&tail=%ld", tail);
    if (r == 0)
        r = cli_open(cli, err);
    if (r == 0)
        r = client_stream(cli->client, path, write_raw, NULL, err);
    return cli_suggest(cli, "/v1/instances", name, r, err);
}

static const struct option_spec ps_options[] = {
    {"a,all", NULL, "also those that do not run", NULL, NULL},
    {"f,filter", "KEY=VALUE", "only those with state, image, name or label=NAME[=VALUE]; repeat for more", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static const struct option_spec logs_options[] = {
    {"f,follow", NULL, "go on as more comes, until it stops", NULL, NULL},
    {"n,tail", "N", "the last N lines only", NULL, NULL},
    {"source", "main|boot|vmm", "what to show: output of the command, of the kernel, of the machine (default: main)", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static const struct option_spec stats_options[] = {
    {"no-stream", NULL, "once", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static const struct option_spec events_options[] = {
    {"f,follow", NULL, "go on as more comes (default on a terminal)", NULL, NULL},
    {"since", "REVISION", "those after a revision", NULL, NULL},
    {"kind", "KIND", "instance, network, volume, image, token or operation only", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command look_commands[] = {
    {.name = "ps", .operands = "", .summary = "list instances", .options = ps_options, .run = run_ps,
     .examples = "polder ps -a\npolder ps -q --filter state=running\npolder ps -o json\n"},
    {.name = "inspect", .operands = "INSTANCE...", .summary = "show all about instances, as JSON", .run = run_inspect},
    {.name = "port", .operands = "INSTANCE", .summary = "list the published ports of an instance", .run = run_port},
    {.name = "logs", .operands = "INSTANCE", .summary = "show what an instance has printed", .options = logs_options, .run = run_logs,
     .description = "What it printed goes out as it is, also to a terminal."},
    {.name = "stats", .operands = "[INSTANCE...]", .summary = "show what instances use", .options = stats_options, .run = watch_stats},
    {.name = "events", .operands = "", .summary = "show what happens", .options = events_options, .run = watch_events},
    {.name = NULL},
};
