/* network-driver STATE-DIR: the networks of a daemon without the daemon, for tests/integration/test_networks.py. Reads one
 * JSON object a line, {"op", …}, answers each with {"ok": …} or {"error", "code"}. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/own.h"
#include "control/network.h"
#include "guest.h"

typedef int op_fn(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err);

static const char *text(const json_t *request, const char *key)
{
    const char *value = json_string_value(json_object_get(request, key));
    return value ? value : "";
}

static int op_available(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    (void)request, (void)ret_answer;
    return networks_nat_available(networks, err);
}

static int op_create(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    return network_create(networks, json_object_get(request, "spec"), NULL, ret_answer, err);
}

static int op_remove(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    return network_remove(networks, text(request, "name"), NULL, err);
}

static int op_rename(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    return network_rename(networks, text(request, "name"), text(request, "new_name"), NULL, err);
}

static int op_list(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    (void)request;
    return network_list(networks, ret_answer, err);
}

static int op_inspect(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    return network_inspect(networks, text(request, "name"), ret_answer, err);
}

/* With "netns" a stand-in runs there, else the fd is closed again. */
static int op_attach(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    struct network_request wanted = {
        .instance_id = text(request, "id"),
        .instance_name = text(request, "name"),
        .index = (unsigned)json_integer_value(json_object_get(request, "index")),
        .entry = json_object_get(request, "entry"),
        .ports = json_object_get(request, "ports"),
    };
    struct network_attachment attachment;
    pid_t pid = 0;
    int r = network_attach(networks, &wanted, &attachment, err);
    if (r < 0)
        return r;
    if (json_object_get(request, "netns"))
        r = guest_start(&attachment, text(request, "netns"), &pid, err);
    *ret_answer = json_pack("{ss ss ss ss ss si si}", "network", attachment.network, "mac", attachment.mac, "address",
                            attachment.address, "gateway", attachment.gateway, "dns", attachment.dns, "prefix",
                            (int)attachment.prefix, "pid", (int)pid);
    network_attachment_clear(&attachment);
    return r;
}

static int op_detach(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    return network_detach(networks, text(request, "id"), err);
}

static int op_release(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    return network_release(networks, text(request, "id"), err);
}

static int op_rename_instance(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    return network_rename_instance(networks, text(request, "id"), text(request, "name"), err);
}

static int op_reconcile(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    (void)request, (void)ret_answer;
    return networks_reconcile(networks, err);
}

static const struct {
    const char *name;
    op_fn *fn;
} ops[] = {
    {"available", op_available}, {"create", op_create},   {"remove", op_remove},   {"rename", op_rename},
    {"list", op_list},           {"inspect", op_inspect}, {"attach", op_attach},   {"detach", op_detach},
    {"release", op_release},     {"rename_instance", op_rename_instance},          {"reconcile", op_reconcile},
};

static int perform(struct networks *networks, const json_t *request, json_t **ret_answer, struct err *err)
{
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        if (!strcmp(ops[i].name, text(request, "op")))
            return ops[i].fn(networks, request, ret_answer, err);
    }
    return err_say(err, EINVAL, "no op");
}

static void answer_line(struct networks *networks, const char *line)
{
    struct err err = {0};
    json_t *request = json_loads(line, 0, NULL), *answer = NULL;
    int r = perform(networks, request, &answer, &err);
    json_t *reply = r < 0 ? json_pack("{ss si}", "error", err.message, "code", -r)
                          : json_pack("{so}", "ok", answer ? answer : json_null());
    json_dumpf(reply, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(reply);
    json_decref(request);
}

static int run(const char *state_dir, struct err *err)
{
    char address[512];
    struct store *store = NULL;
    struct networks *networks = NULL;
    snprintf(address, sizeof address, "sqlite:%s/state.db", state_dir);
    int r = store_open(address, &store, err);
    if (r < 0)
        return r;
    r = networks_open(store, state_dir, &networks, err);
    own_free char *line = NULL;
    size_t size = 0;
    while (r == 0 && getline(&line, &size, stdin) > 0)
        answer_line(networks, line);
    networks_close(networks);
    store_close(store);
    return r;
}

int main(int argc, char **argv)
{
    struct err err = {0};
    signal(SIGCHLD, SIG_DFL);
    if (argc != 2 || run(argv[1], &err) < 0) {
        fprintf(stderr, "network-driver: %s\n", argc == 2 ? err.message : "usage: network-driver STATE-DIR");
        return 1;
    }
    return 0;
}
