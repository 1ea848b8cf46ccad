/* token create, ls, rm */
#include <errno.h>

#include "polder/cli.h"
#include "polder/commands.h"
#include "polder/documents.h"
#include "polder/text.h"

static const struct cli_column columns[] = {
    {"NAME", "name", NULL, false}, {"ROLE", "role", NULL, false}, {"CREATED", "created_at", cli_show_age, false}, {NULL, NULL, NULL, false},
};

static const struct documents tokens = {"/v1/tokens", columns};

/* The token is the one thing on standard output: it goes into a file or a variable. */
static int run_create(struct cli *cli, struct err *err)
{
    json_t *answer = NULL;
    const char *role = cli_value(cli, "role");
    int r = cli_post(cli, json_pack("{s:s, s:s}", "name", cli_operand(cli, 0), "role", role ? role : "viewer"), &answer, err, tokens.path);
    if (r == 0 && cli->output == OUTPUT_JSON)
        r = cli_print_document(cli, answer);
    else if (r == 0) {
        text_print(stdout, cli_text(answer, "token"), "");
        putchar('\n');
    }
    json_decref(answer);
    return r;
}

static int run_ls(struct cli *cli, struct err *err) { return documents_list(cli, &tokens, err); }
static int run_rm(struct cli *cli, struct err *err) { return documents_remove(cli, &tokens, err); }

static const struct option_spec create_options[] = {
    {"role", "viewer|operator|admin", "what its holder may do (default: viewer)", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command token_commands[] = {
    {.name = "create", .operands = "NAME", .summary = "make a token for remote use; it is shown once", .options = create_options,
     .run = run_create, .examples = "polder token create --role operator ci >ci.token\n"
                                    "polder --remote https://host:8443 --token-file ci.token ps\n"},
    {.name = "ls", .operands = "", .summary = "list tokens", .run = run_ls},
    {.name = "rm", .operands = "TOKEN...", .summary = "remove tokens; their holders are locked out at once", .run = run_rm},
    {.name = NULL},
};
