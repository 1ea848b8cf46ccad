/* Help, man pages and the reference page, all from the table of commands. */
#pragma once

#include <stdio.h>
#include "polder/command.h"

#define HELP_NAME_MAX 64

/* The program that option_parse() and friends take for a command; `name` and `usage` are its buffers. */
struct help_program {
    struct option_program program;
    const struct option_spec *shared[3];
    char name[HELP_NAME_MAX], usage[256];
};
void help_program(struct help_program *ret, const struct command_group *group, const struct command *command);
/* For "polder [OPTION...] COMMAND" and, with a group, "polder image ...". */
void help_program_above(struct help_program *ret, const struct command_group *group);

void help_overview(FILE *out); /* of "polder" without a command */
void help_print(const struct help_program *program, const struct command_group *group, const struct command *command, FILE *out);
void help_man(const struct help_program *program, const struct command_group *group, const struct command *command, FILE *out);
void help_exit_status(FILE *out); /* as markdown */
void help_markdown(FILE *out);
