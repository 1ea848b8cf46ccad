/* Command-line options from one table: parsing, --help and the man page derive from it.
 *
 * `--name value`, `--name=value`, and flags without a value. An option's `set` function puts the value into the program's
 * own struct; its error message need not name the option, the parser does. */
#pragma once

#include <stdio.h>
#include "base/err.h"

struct option_spec {
    const char *name;  /* without the dashes; NULL ends the table, or "" with `help` as a heading starts a group */
    const char *value; /* how the value is shown, "PATH"; NULL: a flag, set gets NULL */
    const char *help;  /* one line */
    const char *more;  /* further sentences for the man page; NULL for none */
    /* -EINVAL or another -errno with `err` set. */
    int (*set)(void *target, const char *value, struct err *err);
};

/* `-f VALUE` or `-fVALUE` for `--format VALUE`. */
struct option_letter {
    char letter; /* 0 ends the table */
    const char *name;
};

struct option_program {
    const char *name, *version;
    const char *summary;     /* one line: "run a virtual machine" */
    const char *description; /* man page paragraphs, separated by "\n\n" */
    const char *usage;       /* behind the program's name: "--kernel PATH [OPTION...]" */
    const struct option_spec *options;
    const char *const *sections; /* man page: heading, text, heading, text, ..., NULL */
    const struct option_letter *letters; /* NULL: none */
    int (*operand)(void *target, const char *value, struct err *err); /* arguments that are no options; NULL: refused */
};

/* 0, or -EINVAL and one line that names the option and what it takes. Behind `--` there are only operands. */
must_check int option_parse(const struct option_program *program, void *target, int argc, char **argv, struct err *err);
void option_print_help(const struct option_program *program, FILE *out);
/* The man page in roff's man macros. */
void option_print_man(const struct option_program *program, FILE *out);
