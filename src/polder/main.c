/* polder: finds the command, parses its line, runs it, says what went wrong. */
#include <curl/curl.h>
#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "polder/cli.h"
#include "polder/help.h"
#include "polder/text.h"

static int fail(const struct err *err, int status)
{
    cli_complain(err);
    return status;
}

static void suggest(const struct command_group *group, const char *word, unsigned *best, const char **nearest)
{
    for (const struct command *command = group->commands; command->name; command++)
        if (!command->hidden && text_is_near(word, command->name, best))
            *nearest = command->name;
}

/* "unknown command", with the one that was meant, if any is near. `group` NULL: at the top. */
static int unknown_command(const struct command_group *group, const char *word, struct err *err)
{
    unsigned best = UINT_MAX;
    const char *nearest = NULL, *name = group ? group->name : "", *blank = group ? " " : "";
    for (const struct command_group *g = command_groups; g->name; g++) {
        if (group ? g == group : !*g->name)
            suggest(g, word, &best, &nearest);
        else if (!group && text_is_near(word, g->name, &best))
            nearest = g->name;
    }
    if (nearest)
        return err_say(err, EINVAL, "unknown command '%s%s%.40s', did you mean 'polder %s%s%s'?", name, blank, word, name, blank, nearest);
    return err_say(err, EINVAL, "unknown command '%s%s%.40s', see polder%s%s --help", name, blank, word, blank, name);
}

static int set_output(struct cli *cli, struct err *err)
{
    static const char *const names[] = {"table", "wide", "json", "name"};
    const char *value = cli_value(cli, "output");
    cli->quiet = cli_has(cli, "quiet");
    if (!value)
        return 0;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], value) == 0) {
            cli->output = (enum cli_output)i;
            return 0;
        }
    return err_say(err, EINVAL, "--output: '%s' is none of table, wide, json, name", value);
}

/* --help and the like: true when that was all. */
static bool answer_itself(const struct cli *cli, const struct help_program *program, const struct command_group *group,
                          const struct command *command)
{
    if (cli_has(cli, "help"))
        help_print(program, group, command, stdout);
    else if (cli_has(cli, "man"))
        help_man(program, group, command, stdout);
    else if (cli_has(cli, "version"))
        printf("polder %s\n", POLDER_VERSION);
    else
        return false;
    return true;
}

static int check_operands(const struct cli *cli, const struct help_program *program, const struct command *command, struct err *err)
{
    size_t count = cli->args.operand_count;
    if (count < command_operands_min(command))
        return err_say(err, EINVAL, "too few arguments: %s %s", program->name, program->usage);
    if (count > command_operands_max(command))
        return err_say(err, EINVAL, "'%s' is one argument too many: %s %s", cli->args.operands[count - 1], program->name, program->usage);
    return 0;
}

static int run_command(struct cli *cli, const struct command_group *group, const struct command *command, int argc, char **argv)
{
    struct help_program program;
    struct err err = {0};
    help_program(&program, group, command);
    cli->args.operand_count = 0;
    int r = option_parse(&program.program, &cli->args, argc, argv, &err);
    if (r == 0 && answer_itself(cli, &program, group, command))
        return 0;
    if (r == 0)
        r = set_output(cli, &err);
    if (r == 0)
        r = check_operands(cli, &program, command, &err);
    if (r < 0)
        return fail(&err, CLI_STATUS_USAGE);
    r = command->run(cli, &err);
    if (r >= 0)
        return r;
    if (!err.code)
        err_set(&err, -r, "%s", program.name);
    if (command->own_status && err.exit_code)
        return fail(&err, err.exit_code);
    return fail(&err, r == -EINVAL ? CLI_STATUS_USAGE : r == -ECANCELED ? CLI_STATUS_INTERRUPTED : CLI_STATUS_FAILED);
}

/* Parses up to the first operand, at the top or within a group; goes on with what it names. */
static int descend(struct cli *cli, const struct command_group *group, int argc, char **argv)
{
    struct help_program program;
    struct err err = {0};
    help_program_above(&program, group);
    cli->args.operand_count = 0;
    if (option_parse(&program.program, &cli->args, argc, argv, &err) < 0)
        return fail(&err, CLI_STATUS_USAGE);
    const char *word = cli_operand(cli, 0);
    if (!word && answer_itself(cli, &program, group, NULL))
        return 0;
    if (!word && group) {
        help_print(&program, group, NULL, stderr);
        return CLI_STATUS_USAGE;
    }
    if (!word) {
        help_overview(stdout);
        return 0;
    }
    int rest = (int)cli->args.operand_count;
    const struct command_group *inner = group ? NULL : command_find_group(word);
    const struct command *command = group ? command_find(group, word) : command_find_plain(word);
    static const struct command_group plain = {"", "", NULL};
    if (inner)
        return descend(cli, inner, rest, argv + argc - rest);
    if (command)
        return run_command(cli, group ? group : &plain, command, rest, argv + argc - rest);
    unknown_command(group, word, &err);
    return fail(&err, CLI_STATUS_USAGE);
}

/* What could not be printed is a failure, but nobody needs to be told that nobody reads. */
static int finish_output(int status)
{
    struct err err = {0};
    bool lost = ferror(stdout);
    if (fflush(stdout) == 0 && !lost)
        return status;
    if (errno != EPIPE) {
        (void)err_set(&err, errno, "standard output");
        cli_complain(&err);
    }
    return status ? status : CLI_STATUS_FAILED;
}

int main(int argc, char **argv)
{
    struct cli cli = {0};
    setlocale(LC_CTYPE, "");
    signal(SIGPIPE, SIG_IGN); /* a terminal must be restored whoever goes away */
    if (args_init(&cli.args, argc) < 0)
        return CLI_STATUS_FAILED;
    int status = descend(&cli, NULL, argc, argv);
    client_close(cli.client);
    args_clear(&cli.args);
    return finish_output(status);
}
