/* The one table of commands: parsing, --help, man pages, completion and the reference page all derive from it.
 *
 * A group is one file with an array of commands, and one line in command_table.c. The words in `operands` say what stands
 * there and thereby how many there may be and how they are completed: "INSTANCE [COMMAND [ARG...]]". */
#pragma once

#include "base/option.h"

struct cli;

struct command {
    const char *name; /* without the group's; NULL ends an array */
    const char *operands;
    const char *summary;                /* one line */
    const char *description;            /* paragraphs, separated by "\n\n"; NULL: the summary says all */
    const char *examples;               /* command lines, each ending with "\n"; NULL: none */
    const struct option_spec *options;  /* NULL: none of its own */
    const struct option_spec *shared;   /* with other commands; NULL: none */
    bool rest;                          /* what follows the first operand is a command to run */
    bool hidden;
    bool own_status;                    /* its exit status is that of a command in an instance */
    /* The exit status, or -errno with `err` set; -EINVAL: the command line is wrong. */
    int (*run)(struct cli *cli, struct err *err);
};

struct command_group {
    const char *name;  /* "image", or "" for commands that stand alone; NULL ends the table */
    const char *title; /* heading in overviews */
    const struct command *commands;
};

extern const struct command_group command_groups[];
extern const struct option_spec command_options[]; /* of every command */

/* NULL: there is none. */
const struct command_group *command_find_group(const char *name);
const struct command *command_find(const struct command_group *group, const char *name);
/* A command that stands alone. */
const struct command *command_find_plain(const char *name);
/* "polder image ls" */
void command_full_name(const struct command_group *group, const struct command *command, char *name, size_t size);

/* What the words of `operands` allow. */
unsigned command_operands_min(const struct command *command);
unsigned command_operands_max(const struct command *command); /* UINT_MAX: no end */
/* The word for operand number `at` (from 0), "INSTANCE", without brackets and dots; false: none may stand there. */
bool command_operand_word(const struct command *command, unsigned at, char *word, size_t size);
