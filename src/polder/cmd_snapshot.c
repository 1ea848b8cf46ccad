/* snapshot create, restore, rm, ls */
#include "polder/cli.h"
#include "polder/commands.h"

static const struct cli_column columns[] = {
    {"NAME", "name", NULL, false},
    {"SIZE", "size_bytes", cli_show_size, false},
    {"CREATED", "created_at", cli_show_age, false},
    {NULL, NULL, NULL, false},
};

static int run_ls(struct cli *cli, struct err *err)
{
    json_t *answer = NULL;
    const char *name = cli_operand(cli, 0);
    int r = cli_get(cli, &answer, err, "/v1/instances/%s/snapshots", name);
    if (r < 0)
        return cli_suggest(cli, "/v1/instances", name, r, err);
    r = cli_print_list(cli, cli_array(answer), columns);
    json_decref(answer);
    return r;
}

/* Waits for `answer`, then prints the snapshot's name; `r` is how the request went. */
static int end(struct cli *cli, json_t *answer, int r, struct err *err)
{
    const char *name = cli_operand(cli, 0);
    if (r == 0)
        r = cli_finish(cli, answer, NULL, err);
    if (r < 0)
        return cli_suggest(cli, "/v1/instances", name, r, err);
    cli_say(cli, "%s", cli_operand(cli, 1));
    return 0;
}

static int run_create(struct cli *cli, struct err *err)
{
    json_t *answer = NULL;
    int r = cli_post(cli, json_pack("{s:s}", "name", cli_operand(cli, 1)), &answer, err, "/v1/instances/%s/snapshots",
                     cli_operand(cli, 0));
    return end(cli, answer, r, err);
}

static int run_restore(struct cli *cli, struct err *err)
{
    json_t *answer = NULL;
    int r = cli_post(cli, NULL, &answer, err, "/v1/instances/%s/snapshots/%s/restore", cli_operand(cli, 0), cli_operand(cli, 1));
    return end(cli, answer, r, err);
}

static int run_rm(struct cli *cli, struct err *err)
{
    json_t *answer = NULL;
    int r = cli_delete(cli, &answer, err, "/v1/instances/%s/snapshots/%s", cli_operand(cli, 0), cli_operand(cli, 1));
    return end(cli, answer, r, err);
}

const struct command snapshot_commands[] = {
    {.name = "create", .operands = "INSTANCE SNAPSHOT", .summary = "keep the state of an instance's disk", .run = run_create},
    {.name = "restore", .operands = "INSTANCE SNAPSHOT", .summary = "bring a stopped instance's disk back to a snapshot",
     .run = run_restore},
    {.name = "rm", .operands = "INSTANCE SNAPSHOT", .summary = "remove a snapshot", .run = run_rm},
    {.name = "ls", .operands = "INSTANCE", .summary = "list the snapshots of an instance", .run = run_ls},
    {.name = NULL},
};
