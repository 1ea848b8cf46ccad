/* Command-line options from one table: parsing, --help and the man page derive from it.
 *
 * `--name value`, `--name=value`, and flags without a value; where an option has a letter, `-n value`, `-nvalue`, and flags
 * together: `-it`. An option's `set` function puts the value into the program's own struct; its error message need not
 * name the option, the parser does. */
#pragma once

#include <stdbool.h>
#include <stdio.h>
#include "base/err.h"

struct option_spec {
    /* Without the dashes; "n,name" also has the letter -n. NULL ends the table, "" with `help` as a heading starts a group. */
    const char *name;
    const char *value; /* how the value is shown, "PATH"; NULL: a flag, set gets NULL */
    const char *help;  /* one line; NULL: neither help nor man page show it */
    const char *more;  /* further sentences for the man page; NULL for none */
    /* -EINVAL or another -errno with `err` set. NULL: the program's `store` takes it. */
    int (*set)(void *target, const char *value, struct err *err);
};

/* `-f VALUE` or `-fVALUE` for `--format VALUE`: for a program whose letters differ from command to command. */
struct option_letter {
    char letter; /* 0 ends the table */
    const char *name;
};

struct option_program {
    const char *name, *version;
    const char *summary;     /* one line: "run a virtual machine" */
    const char *description; /* man page paragraphs, separated by "\n\n" */
    const char *usage;       /* behind the program's name: "--kernel PATH [OPTION...]" */
    const struct option_spec *options;       /* NULL: none of its own */
    const struct option_spec *const *shared; /* further tables, shown behind the first; ends with NULL; or NULL */
    const char *const *sections; /* man page: heading, text, heading, text, ..., NULL */
    const struct option_letter *letters; /* NULL: none */
    int (*operand)(void *target, const char *value, struct err *err); /* arguments that are no options; NULL: refused */
    unsigned rest_after; /* so many operands, and all further arguments are operands: of a command to run; 0: never */
    int (*store)(void *target, const struct option_spec *spec, const char *value, struct err *err);
};

/* The name without its letter, and the letter or 0. */
const char *option_name(const struct option_spec *spec);
char option_letter(const struct option_spec *spec);
/* Calls `fn` with each option and heading of all tables, until it returns false. */
void option_each(const struct option_program *program, bool (*fn)(void *arg, const struct option_spec *spec), void *arg);

/* 0, or -EINVAL and one line that names the option and what it takes. Behind `--` there are only operands. */
must_check int option_parse(const struct option_program *program, void *target, int argc, char **argv, struct err *err);
void option_print_help(const struct option_program *program, FILE *out);
/* The man page in roff's man macros. */
void option_print_man(const struct option_program *program, FILE *out);
