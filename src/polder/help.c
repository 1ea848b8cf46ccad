#include "polder/help.h"

#include <stdlib.h>
#include <string.h>

#include "polder/args.h"

static const char description[] =
    "polder runs instances (virtual machines from images), with networks, volumes, limits and a way in. It speaks to polderd, over "
    "its unix socket or TLS.";

static const char exit_status[] =
    "0: done.\n\n"
    "1: refused or failed; one line on standard error, which begins with \"polder: \", says why and what to do.\n\n"
    "2: the command line is wrong.\n\n"
    "run, exec, attach and wait end with the status of the command in the instance, also when it is one of the above: a line that "
    "begins with \"polder: \" tells the difference. A command that a signal ended gives 128 and the signal's number. "
    "125: the command ran, but polder lost sight of it and does not know how it ended. 126: the instance has the command, but "
    "cannot run it; 127: it has no such command.\n\n"
    "130: interrupted by Ctrl-C.";

static const char environment[] =
    "POLDER_SOCKET, POLDER_REMOTE: where polderd is, when no option says so.\n\n"
    "POLDER_TOKEN: the token for a remote polderd; --token-file keeps it out of the environment.\n\n"
    "NO_COLOR: when it is set, nothing is coloured; nothing is anyway when the output is no terminal.";

void help_exit_status(FILE *out)
{
    fprintf(out, "\n## Exit status\n\n%s\n\n## Environment\n\n%s\n", exit_status, environment);
}

static void program_of(struct help_program *ret, const struct option_spec *shared)
{
    unsigned count = 0;
    if (shared)
        ret->shared[count++] = shared;
    ret->shared[count] = command_options;
    ret->program = (struct option_program){.name = ret->name, .version = POLDER_VERSION, .usage = ret->usage, .shared = ret->shared,
                                           .store = args_store, .operand = args_operand};
}

void help_program(struct help_program *ret, const struct command_group *group, const struct command *command)
{
    *ret = (struct help_program){0};
    program_of(ret, command->shared);
    command_full_name(group, command, ret->name, sizeof ret->name);
    snprintf(ret->usage, sizeof ret->usage, "[OPTION...]%s%s", *command->operands ? " " : "", command->operands);
    ret->program.summary = command->summary;
    ret->program.description = command->description ? command->description : command->summary;
    ret->program.options = command->options;
    ret->program.rest_after = command->rest;
}

void help_program_above(struct help_program *ret, const struct command_group *group)
{
    *ret = (struct help_program){0};
    program_of(ret, NULL);
    snprintf(ret->name, sizeof ret->name, "polder%s%s", group ? " " : "", group ? group->name : "");
    snprintf(ret->usage, sizeof ret->usage, "[OPTION...] COMMAND [ARGUMENT...]");
    ret->program.summary = group ? group->title : "virtual machines from images";
    ret->program.description = group ? group->title : description;
    ret->program.rest_after = 1;
}

static void print_commands(const struct command_group *group, FILE *out)
{
    for (const struct command *command = group->commands; command->name; command++) {
        char name[HELP_NAME_MAX];
        command_full_name(group, command, name, sizeof name);
        if (!command->hidden)
            fprintf(out, "  %-20s %s\n", name + strlen("polder "), command->summary);
    }
}

/* "Images:" and its commands. */
static void print_group(const struct command_group *group, FILE *out)
{
    fprintf(out, "\n%s:\n", group->title);
    print_commands(group, out);
}

void help_overview(FILE *out)
{
    fputs("polder: virtual machines from images\n\n"
          "  polder run -it debian       a machine with a shell in your terminal\n"
          "  polder ps                   what runs\n"
          "  polder exec -it NAME -- sh  a shell in one that runs\n", out);
    for (const struct command_group *group = command_groups; group->name; group++) {
        if (*group->name) {
            fprintf(out, "\npolder %s:", group->name);
            for (const struct command *command = group->commands; command->name; command++)
                fprintf(out, " %s", command->name);
            continue;
        }
        fprintf(out, "\n%s:", group->title);
        for (const struct command *command = group->commands; command->name; command++)
            if (!command->hidden)
                fprintf(out, " %s", command->name);
    }
    fputs("\n\n\"polder --help\" says more, \"polder COMMAND --help\" all.\n", out);
}

void help_print(const struct help_program *program, const struct command_group *group, const struct command *command, FILE *out)
{
    option_print_help(&program->program, out);
    if (command && command->description)
        fprintf(out, "\n%s\n", command->description);
    if (command && command->examples)
        fprintf(out, "\nExamples:\n%s", command->examples);
    if (command)
        return;
    for (const struct command_group *g = command_groups; g->name; g++)
        if (!group || g == group)
            print_group(g, out);
}

/* The text of section "Commands" for man pages. */
static void commands_text(const struct command_group *only, FILE *out)
{
    for (const struct command_group *group = command_groups; group->name; group++) {
        if (only && group != only)
            continue;
        for (const struct command *command = group->commands; command->name; command++) {
            char name[HELP_NAME_MAX];
            command_full_name(group, command, name, sizeof name);
            if (!command->hidden)
                fprintf(out, "%s %s: %s\n\n", name, command->operands, command->summary);
        }
    }
}

void help_man(const struct help_program *program, const struct command_group *group, const struct command *command, FILE *out)
{
    struct option_program page = program->program;
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    if (!stream)
        return;
    if (!command)
        commands_text(group, stream);
    else
        for (const char *c = command->examples ? command->examples : ""; *c; c++)
            fprintf(stream, *c == '\n' ? "\n\n" : "%c", *c);
    fclose(stream);
    while (size && text[size - 1] == '\n')
        text[--size] = '\0';
    const char *sections[] = {command ? "Examples" : "Commands", text, "Exit status", exit_status, "Environment", environment, NULL};
    page.sections = *text ? sections : sections + 2;
    option_print_man(&page, out);
    free(text);
}
