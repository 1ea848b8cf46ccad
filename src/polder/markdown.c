/* The reference page of the guide. */
#include <ctype.h>
#include <stdio.h>

#include "polder/help.h"

/* "|" would end a cell. */
static void print_cell(FILE *out, const char *text)
{
    for (; *text; text++)
        fprintf(out, *text == '|' ? "\\|" : "%c", *text);
}

static void print_options(FILE *out, const struct option_spec *options)
{
    for (const struct option_spec *spec = options; spec && spec->name; spec++) {
        if (!*spec->name)
            continue;
        fputs("| ", out);
        if (option_letter(spec))
            fprintf(out, "`-%c`, ", option_letter(spec));
        fprintf(out, "`--%s", option_name(spec));
        if (spec->value) {
            fputc(' ', out);
            print_cell(out, spec->value);
        }
        fputs("` | ", out);
        print_cell(out, spec->help);
        if (spec->more) {
            fputs(". ", out);
            print_cell(out, spec->more);
        }
        fputs(" |\n", out);
    }
}

static void print_command(FILE *out, const struct command_group *group, const struct command *command)
{
    struct help_program program;
    help_program(&program, group, command);
    fprintf(out, "### %s\n\n`%s %s`\n\n%c%s.\n", program.name, program.name, program.usage, toupper((unsigned char)command->summary[0]),
            command->summary + 1);
    if (command->description)
        fprintf(out, "\n%s\n", command->description);
    if (command->options || command->shared) {
        fputs("\n| option | |\n|---|---|\n", out);
        print_options(out, command->options);
        print_options(out, command->shared);
    }
    if (command->examples)
        fprintf(out, "\n```\n%s```\n", command->examples);
    fputc('\n', out);
}

void help_markdown(FILE *out)
{
    struct help_program top;
    help_program_above(&top, NULL);
    fprintf(out, "# Commands\n\nMade by `polder help --markdown` from the table of commands.\n\n%s\n\n", top.program.description);
    for (const struct command_group *group = command_groups; group->name; group++) {
        fprintf(out, "## %s\n\n", group->title);
        for (const struct command *command = group->commands; command->name; command++)
            if (!command->hidden)
                print_command(out, group, command);
    }
    fputs("## Options of every command\n\n| option | |\n|---|---|\n", out);
    print_options(out, command_options);
    help_exit_status(out);
}
