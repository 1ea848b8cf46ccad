/* version, audit, completion, help, and the hidden __complete. */
#include <errno.h>
#include <string.h>

#include "polder/cli.h"
#include "polder/commands.h"
#include "polder/complete.h"
#include "polder/help.h"
#include "polder/text.h"

static int run_version(struct cli *cli, struct err *err)
{
    struct err ignored;
    json_t *system = NULL;
    (void)err;
    int r = cli_get(cli, &system, &ignored, "/v1/system");
    const char *server = r == 0 ? cli_text(system, "version") : "";
    if (cli->output == OUTPUT_JSON) {
        json_t *versions = json_pack("{s:s, s:s*}", "polder", POLDER_VERSION, "polderd", *server ? server : NULL);
        r = cli_print_document(cli, versions);
        json_decref(versions);
    } else {
        printf("polder %s\n", POLDER_VERSION);
        cli_say(cli, "polderd %s", *server ? server : "cannot be reached");
        r = 0;
    }
    json_decref(system);
    return r;
}

static const struct cli_column audit_columns[] = {
    {"ID", "id", NULL, false},             {"TIME", "time", cli_show_time, false}, {"WHO", "actor", NULL, false},
    {"FROM", "origin", NULL, false},       {"WHAT", "action", NULL, false},        {"TARGET", "target", NULL, false},
    {"DETAIL", "detail", NULL, true},      {NULL, NULL, NULL, false},
};

static int run_audit(struct cli *cli, struct err *err)
{
    json_t *answer = NULL;
    long limit = 50, before = 0;
    int r = cli_number(cli, "limit", 1, 1000, &limit, err);
    if (r == 0)
        r = cli_number(cli, "before", 1, INT32_MAX, &before, err);
    if (r == 0)
        r = before ? cli_get(cli, &answer, err, "/v1/audit?limit=%d&before=%d", (int)limit, (int)before)
                   : cli_get(cli, &answer, err, "/v1/audit?limit=%d", (int)limit);
    if (r == 0)
        r = cli_print_list(cli, cli_array(answer), audit_columns);
    json_decref(answer);
    return r;
}

static int run_completion(struct cli *cli, struct err *err)
{
    const char *shell = cli_operand(cli, 0), *script = complete_script(shell);
    if (!script)
        return err_say(err, EINVAL, "'%s' is none of bash, zsh, fish", shell);
    fputs(script, stdout);
    return 0;
}

static int run_complete(struct cli *cli, struct err *err)
{
    (void)err;
    return complete_run(cli);
}

static void help_of(const struct command_group *group, const struct command *command)
{
    static const struct command_group plain = {"", "", NULL};
    struct help_program program;
    if (command)
        help_program(&program, group ? group : &plain, command);
    else
        help_program_above(&program, group);
    help_print(&program, group, command, stdout);
}

static int run_help(struct cli *cli, struct err *err)
{
    const char *first = cli_operand(cli, 0), *second = cli_operand(cli, 1);
    const struct command_group *group = first ? command_find_group(first) : NULL;
    const struct command *command = group ? (second ? command_find(group, second) : NULL) : first ? command_find_plain(first) : NULL;
    if (cli_has(cli, "markdown"))
        help_markdown(stdout);
    else if (!command && (second || (first && !group)))
        return err_say(err, EINVAL, "there is no command '%s%s%s', see polder --help", first, second ? " " : "", second ? second : "");
    else
        help_of(group, command);
    return 0;
}

static const struct option_spec audit_options[] = {
    {"n,limit", "N", "the last N, at most 1000 (default: 50)", NULL, NULL},
    {"before", "ID", "those before a record", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static const struct option_spec help_options[] = {
    {"markdown", NULL, "the reference page of all commands", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command other_commands[] = {
    {.name = "audit", .operands = "", .summary = "show who changed what, newest first", .options = audit_options, .run = run_audit},
    {.name = "version", .operands = "", .summary = "show the versions of polder and polderd", .run = run_version},
    {.name = "help", .operands = "[COMMAND [SUBCOMMAND]]", .summary = "show help", .options = help_options, .run = run_help},
    {.name = "completion", .operands = "bash|zsh|fish", .summary = "print a completion script for a shell", .run = run_completion,
     .examples = "source <(polder completion bash)\n"},
    {.name = "__complete", .operands = "[WORD...]", .summary = "candidates for completion", .rest = true, .hidden = true,
     .run = run_complete},
    {.name = NULL},
};
