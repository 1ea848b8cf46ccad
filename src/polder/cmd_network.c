/* network create, ls, rm, inspect */
#include "polder/cli.h"
#include "polder/commands.h"
#include "polder/documents.h"

static const struct cli_column columns[] = {
    {"NAME", "name", NULL, false},     {"KIND", "kind", NULL, false},         {"SUBNET", "subnet", NULL, false},
    {"GATEWAY", "gateway", NULL, false}, {"BRIDGE", "bridge", NULL, true},    {"CREATED", "created_at", cli_show_age, false},
    {NULL, NULL, NULL, false},
};

static const struct documents networks = {"/v1/networks", columns};

static int run_create(struct cli *cli, struct err *err)
{
    return documents_create(cli, &networks, json_pack("{s:s, s:s*, s:s*}", "name", cli_operand(cli, 0), "kind", cli_value(cli, "kind"),
                                                     "subnet", cli_value(cli, "subnet")), err);
}

static int run_ls(struct cli *cli, struct err *err) { return documents_list(cli, &networks, err); }
static int run_inspect(struct cli *cli, struct err *err) { return documents_inspect(cli, &networks, err); }
static int run_rm(struct cli *cli, struct err *err) { return documents_remove(cli, &networks, err); }

static const struct option_spec create_options[] = {
    {"kind", "nat|user", "nat: a bridge of this host; user: without privilege (default: what polderd can)", NULL, NULL},
    {"subnet", "ADDRESS/BITS", "its addresses (default: polderd takes free ones)", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command network_commands[] = {
    {.name = "create", .operands = "NAME", .summary = "make a network", .options = create_options, .run = run_create,
     .examples = "polder network create lan\npolder network create --subnet 10.9.0.0/24 lan\n"},
    {.name = "ls", .operands = "", .summary = "list networks", .run = run_ls},
    {.name = "rm", .operands = "NETWORK...", .summary = "remove networks", .run = run_rm},
    {.name = "inspect", .operands = "NETWORK", .summary = "show all about a network, as JSON", .run = run_inspect},
    {.name = NULL},
};
