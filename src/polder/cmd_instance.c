/* start, stop, restart, kill, pause, resume, rm, rename, clone, wait: what instances do. */
#include <errno.h>
#include <string.h>

#include "polder/cli.h"
#include "polder/commands.h"

/* Works on each operand; goes on after a failure, and tells the first of them. */
static int each(struct cli *cli, int (*one)(struct cli *cli, const char *name, struct err *err), struct err *err)
{
    int result = 0;
    const char *name;
    for (size_t at = 0; (name = cli_operand(cli, at)) != NULL; at++) {
        struct err mine = {0};
        int r = cli_suggest(cli, "/v1/instances", name, one(cli, name, &mine), &mine);
        if (r == 0)
            cli_say(cli, "%s", name);
        else if (result == 0) {
            result = r;
            *err = mine;
        } else
            cli_complain(&mine);
    }
    return result;
}

/* POST .../NAME/VERB with what the options say. */
static int act(struct cli *cli, const char *name, const char *verb, struct err *err)
{
    json_t *answer = NULL, *body = json_object();
    long timeout_s = -1;
    int r = cli_number(cli, "time", 0, 3600, &timeout_s, err);
    if (timeout_s >= 0)
        json_object_set_new(body, "timeout_s", json_integer(timeout_s));
    if (cli_value(cli, "signal"))
        json_object_set_new(body, "signal", json_string(cli_value(cli, "signal")));
    if (r < 0)
        json_decref(body);
    else
        r = cli_post(cli, body, &answer, err, "/v1/instances/%s/%s", name, verb);
    return r < 0 ? r : cli_finish(cli, answer, NULL, err);
}

static int start_one(struct cli *cli, const char *name, struct err *err) { return act(cli, name, "start", err); }
static int stop_one(struct cli *cli, const char *name, struct err *err) { return act(cli, name, "stop", err); }
static int restart_one(struct cli *cli, const char *name, struct err *err) { return act(cli, name, "restart", err); }
static int kill_one(struct cli *cli, const char *name, struct err *err) { return act(cli, name, "kill", err); }
static int pause_one(struct cli *cli, const char *name, struct err *err) { return act(cli, name, "pause", err); }
static int resume_one(struct cli *cli, const char *name, struct err *err) { return act(cli, name, "resume", err); }

static int remove_one(struct cli *cli, const char *name, struct err *err)
{
    json_t *answer = NULL;
    int r = cli_delete(cli, &answer, err, "/v1/instances/%s?force=%d", name, cli_has(cli, "force"));
    return r < 0 ? r : cli_finish(cli, answer, NULL, err);
}

static int run_start(struct cli *cli, struct err *err) { return each(cli, start_one, err); }
static int run_stop(struct cli *cli, struct err *err) { return each(cli, stop_one, err); }
static int run_restart(struct cli *cli, struct err *err) { return each(cli, restart_one, err); }
static int run_kill(struct cli *cli, struct err *err) { return each(cli, kill_one, err); }
static int run_pause(struct cli *cli, struct err *err) { return each(cli, pause_one, err); }
static int run_resume(struct cli *cli, struct err *err) { return each(cli, resume_one, err); }
static int run_rm(struct cli *cli, struct err *err) { return each(cli, remove_one, err); }

/* rename and clone: POST .../NAME/VERB {"name"} */
static int to_new_name(struct cli *cli, const char *verb, struct err *err)
{
    json_t *answer = NULL;
    const char *name = cli_operand(cli, 0), *new_name = cli_operand(cli, 1);
    int r = cli_post(cli, json_pack("{s:s}", "name", new_name), &answer, err, "/v1/instances/%s/%s", name, verb);
    if (r == 0)
        r = cli_finish(cli, answer, NULL, err);
    if (r < 0)
        return cli_suggest(cli, "/v1/instances", name, r, err);
    cli_say(cli, "%s", new_name);
    return 0;
}

static int run_rename(struct cli *cli, struct err *err) { return to_new_name(cli, "rename", err); }
static int run_clone(struct cli *cli, struct err *err) { return to_new_name(cli, "clone", err); }

struct answer {
    char text[256];
    size_t len;
};

static bool take_answer(void *arg, const char *data, size_t len)
{
    struct answer *answer = arg;
    bool fits = len < sizeof answer->text - answer->len;
    if (fits)
        memcpy(answer->text + answer->len, data, len);
    answer->len += fits ? len : 0;
    return fits;
}

/* As a stream: such an answer may take days. */
static int wait_one(struct cli *cli, const char *name, json_int_t *ret_status, struct err *err)
{
    char path[CLIENT_URL_MAX];
    struct answer answer = {.len = 0};
    int r = cli_open(cli, err);
    if (r == 0)
        r = client_path(path, err, "/v1/instances/%s/wait", name);
    if (r == 0)
        r = client_stream(cli->client, path, take_answer, &answer, err);
    if (r < 0)
        return cli_suggest(cli, "/v1/instances", name, r, err);
    json_t *document = json_loadb(answer.text, answer.len, 0, NULL);
    const json_t *status = json_object_get(document, "exit_code");
    bool known = json_is_integer(status);
    *ret_status = json_integer_value(status);
    json_decref(document);
    return known ? 0 : err_say(err, EPROTO, "the server's answer has no exit status: is it a polderd?");
}

/* Until all have stopped; ends with the status of the last. */
static int run_wait(struct cli *cli, struct err *err)
{
    const char *name;
    json_int_t status = 0;
    for (size_t at = 0; (name = cli_operand(cli, at)) != NULL; at++) {
        int r = wait_one(cli, name, &status, err);
        if (r < 0)
            return r;
        if (!cli->quiet)
            printf("%lld\n", (long long)status);
    }
    return (int)(status & 0xff);
}

static const struct option_spec stop_options[] = {
    {"t,time", "SECONDS", "how long it may take to end by itself (default: 10)", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static const struct option_spec kill_options[] = {
    {"s,signal", "SIGNAL", "TERM, HUP, ... (default: KILL, which ends the machine)", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static const struct option_spec rm_options[] = {
    {"f,force", NULL, "also when it runs", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command instance_commands[] = {
    {.name = "start", .operands = "INSTANCE...", .summary = "start instances", .run = run_start},
    {.name = "stop", .operands = "INSTANCE...", .summary = "stop instances: ask them, kill those that do not end in time",
     .options = stop_options, .run = run_stop},
    {.name = "restart", .operands = "INSTANCE...", .summary = "stop and start instances", .options = stop_options, .run = run_restart},
    {.name = "kill", .operands = "INSTANCE...", .summary = "send a signal to the main processes of instances", .options = kill_options,
     .run = run_kill},
    {.name = "pause", .operands = "INSTANCE...", .summary = "let instances stand still", .run = run_pause},
    {.name = "resume", .operands = "INSTANCE...", .summary = "let paused instances go on", .run = run_resume},
    {.name = "rm", .operands = "INSTANCE...", .summary = "remove instances and their disks", .options = rm_options, .run = run_rm},
    {.name = "rename", .operands = "INSTANCE NEW-NAME", .summary = "give an instance another name", .run = run_rename},
    {.name = "clone", .operands = "INSTANCE NEW-NAME", .summary = "make a stopped copy of an instance", .run = run_clone,
     .description = "The copy has a disk of its own, which at first shares its contents with the original's."},
    {.name = "wait", .operands = "INSTANCE...", .summary = "wait until instances have stopped, print their exit status",
     .own_status = true, .run = run_wait},
    {.name = NULL},
};
