/* Options from a table: a linear scan for each argument, which a command line is short enough for. */
#include "base/option.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#define HELP_COLUMN 34

static bool is_heading(const struct option_spec *spec)
{
    return !*spec->name;
}

static const struct option_spec *find_option(const struct option_program *program, const char *name, size_t len)
{
    for (const struct option_spec *spec = program->options; spec->name; spec++)
        if (!is_heading(spec) && strlen(spec->name) == len && !memcmp(spec->name, name, len))
            return spec;
    return NULL;
}

/* The option's name, without dashes, that argv[at] holds: from its letter or as it stands. NULL: an operand. */
static const char *name_of(const struct option_program *program, const char *argument, size_t *ret_len, const char **ret_value)
{
    *ret_value = NULL;
    if (strncmp(argument, "--", 2) == 0 && argument[2]) {
        const char *equals = strchr(argument + 2, '=');
        *ret_len = equals ? (size_t)(equals - argument - 2) : strlen(argument + 2);
        *ret_value = equals ? equals + 1 : NULL;
        return argument + 2;
    }
    for (const struct option_letter *l = program->letters; l && l->letter; l++)
        if (argument[0] == '-' && argument[1] == l->letter) {
            *ret_len = strlen(l->name);
            *ret_value = argument[2] ? argument + 2 : NULL;
            return l->name;
        }
    return NULL;
}

/* A number below zero, like "-1G", is no option. */
static bool is_option(const char *argument)
{
    return argument[0] == '-' && argument[1] && !isdigit((unsigned char)argument[1]);
}

static int take_operand(const struct option_program *program, void *target, const char *argument, struct err *err)
{
    if (!program->operand || is_option(argument))
        return err_say(err, EINVAL, "unexpected argument '%s', see %s --help", argument, program->name);
    return program->operand(target, argument, err);
}

/* Handles argv[*at]; moves *at when the value is the next argument. */
static int parse_one(const struct option_program *program, void *target, int argc, char **argv, int *at, struct err *err)
{
    const char *argument = argv[*at], *value;
    size_t len = 0;
    const char *name = name_of(program, argument, &len, &value);
    if (!name)
        return take_operand(program, target, argument, err);
    const struct option_spec *spec = find_option(program, name, len);
    if (!spec)
        return err_say(err, EINVAL, "unknown option '%s', see %s --help", argument, program->name);
    if (!spec->value && value)
        return err_say(err, EINVAL, "option '--%s' takes no value", spec->name);
    if (spec->value && !value) {
        if (*at + 1 >= argc)
            return err_say(err, EINVAL, "option '--%s' needs a value: --%s %s", spec->name, spec->name, spec->value);
        value = argv[++*at];
    }
    if (spec->set(target, value, err) < 0)
        return err_ctx(err, "--%s", spec->name);
    return 0;
}

int option_parse(const struct option_program *program, void *target, int argc, char **argv, struct err *err)
{
    bool operands = false;
    for (int at = 1; at < argc; at++) {
        if (!operands && program->operand && strcmp(argv[at], "--") == 0) {
            operands = true;
            continue;
        }
        int r = operands ? program->operand(target, argv[at], err) : parse_one(program, target, argc, argv, &at, err);
        if (r < 0)
            return r;
    }
    return 0;
}

void option_print_help(const struct option_program *program, FILE *out)
{
    fprintf(out, "%s: %s\n\nUsage: %s %s\n", program->name, program->summary, program->name, program->usage);
    for (const struct option_spec *spec = program->options; spec->name; spec++) {
        if (is_heading(spec)) {
            fprintf(out, "\n%s:\n", spec->help);
            continue;
        }
        int width = fprintf(out, "  --%s%s%s", spec->name, spec->value ? " " : "", spec->value ? spec->value : "");
        if (width >= HELP_COLUMN)
            width = fprintf(out, "\n") * 0;
        fprintf(out, "%*s%s\n", HELP_COLUMN - width, "", spec->help);
    }
}

/* Text with roff's special characters escaped and blank lines as paragraphs. */
static void print_roff(FILE *out, const char *text)
{
    bool line_start = true;
    for (; *text; text++) {
        if (text[0] == '\n' && text[1] == '\n') {
            fputs("\n.PP\n", out);
            line_start = true;
            text++;
            continue;
        }
        if (line_start && (*text == '.' || *text == '\''))
            fputs("\\&", out);
        if (*text == '\\')
            fputs("\\e", out);
        else if (*text == '-')
            fputs("\\-", out);
        else
            fputc(*text, out);
        line_start = *text == '\n';
    }
    fputc('\n', out);
}

static void print_upper(FILE *out, const char *text)
{
    for (; *text; text++)
        fputc(toupper((unsigned char)*text), out);
}

static void print_man_option(FILE *out, const struct option_spec *spec)
{
    fputs(".TP\n\\fB\\-\\-", out);
    for (const char *c = spec->name; *c; c++)
        fputs(*c == '-' ? "\\-" : (const char[2]){*c, 0}, out);
    fputs("\\fR", out);
    if (spec->value)
        fprintf(out, " \\fI%s\\fR", spec->value);
    fputc('\n', out);
    print_roff(out, spec->help);
    if (spec->more) {
        fputs(".br\n", out);
        print_roff(out, spec->more);
    }
}

void option_print_man(const struct option_program *program, FILE *out)
{
    fputs(".TH ", out);
    print_upper(out, program->name);
    fprintf(out, " 1 \"\" \"Polder %s\" \"Polder manual\"\n.SH NAME\n", program->version);
    print_roff(out, program->name);
    fputs("\\- ", out);
    print_roff(out, program->summary);
    fprintf(out, ".SH SYNOPSIS\n.B %s\n", program->name);
    print_roff(out, program->usage);
    fputs(".SH DESCRIPTION\n", out);
    print_roff(out, program->description);
    fputs(".SH OPTIONS\n", out);
    for (const struct option_spec *spec = program->options; spec->name; spec++) {
        if (is_heading(spec))
            fprintf(out, ".SS %s\n", spec->help);
        else
            print_man_option(out, spec);
    }
    for (const char *const *section = program->sections; section && *section; section += 2) {
        fputs(".SH ", out);
        print_upper(out, section[0]);
        fputc('\n', out);
        print_roff(out, section[1]);
    }
}
