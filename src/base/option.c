/* Options from tables: a linear scan for each argument, which a command line is short enough for. */
#include "base/option.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#define HELP_COLUMN 34

static bool is_heading(const struct option_spec *spec)
{
    return !*spec->name;
}

char option_letter(const struct option_spec *spec)
{
    return spec->name[0] && spec->name[1] == ',' ? spec->name[0] : '\0';
}

const char *option_name(const struct option_spec *spec)
{
    return option_letter(spec) ? spec->name + 2 : spec->name;
}

static bool each_of(const struct option_spec *table, bool (*fn)(void *arg, const struct option_spec *spec), void *arg)
{
    for (const struct option_spec *spec = table; spec && spec->name; spec++)
        if (!fn(arg, spec))
            return false;
    return true;
}

void option_each(const struct option_program *program, bool (*fn)(void *arg, const struct option_spec *spec), void *arg)
{
    if (!each_of(program->options, fn, arg))
        return;
    for (const struct option_spec *const *table = program->shared; table && *table; table++)
        if (!each_of(*table, fn, arg))
            return;
}

struct search {
    const char *name; /* NULL: by letter */
    size_t len;
    char letter;
    const struct option_spec *found;
};

static bool is_it(void *arg, const struct option_spec *spec)
{
    struct search *search = arg;
    const char *name = option_name(spec);
    bool same = !search->name ? option_letter(spec) == search->letter
                              : strlen(name) == search->len && !memcmp(name, search->name, search->len);
    if (same && !is_heading(spec))
        search->found = spec;
    return !search->found;
}

static const struct option_spec *find_option(const struct option_program *program, const char *name, size_t len)
{
    struct search search = {.name = name, .len = len};
    option_each(program, is_it, &search);
    return search.found;
}

static const struct option_spec *find_letter(const struct option_program *program, char letter)
{
    for (const struct option_letter *l = program->letters; l && l->letter; l++)
        if (l->letter == letter)
            return find_option(program, l->name, strlen(l->name));
    struct search search = {.letter = letter};
    option_each(program, is_it, &search);
    return search.found;
}

static int unknown_option(const struct option_program *program, const char *argument, struct err *err)
{
    return err_say(err, EINVAL, "unknown option '%s', see %s --help", argument, program->name);
}

static int apply(const struct option_program *program, void *target, const struct option_spec *spec, const char *value, struct err *err)
{
    int r = spec->set ? spec->set(target, value, err) : program->store(target, spec, value, err);
    return r < 0 ? err_ctx(err, "--%s", option_name(spec)) : 0;
}

/* With the next argument as the value, which moves *at. */
static int apply_next(const struct option_program *program, void *target, const struct option_spec *spec, char **argv, int *at,
                      struct err *err)
{
    const char *name = option_name(spec);
    if (!argv[*at + 1])
        return err_say(err, EINVAL, "option '--%s' needs a value: --%s %s", name, name, spec->value);
    return apply(program, target, spec, argv[++*at], err);
}

static int parse_long(const struct option_program *program, void *target, char **argv, int *at, struct err *err)
{
    const char *name = argv[*at] + 2, *equals = strchr(name, '=');
    const struct option_spec *spec = find_option(program, name, equals ? (size_t)(equals - name) : strlen(name));
    if (!spec)
        return unknown_option(program, argv[*at], err);
    if (!spec->value && equals)
        return err_say(err, EINVAL, "option '--%s' takes no value", option_name(spec));
    if (spec->value && !equals)
        return apply_next(program, target, spec, argv, at, err);
    return apply(program, target, spec, equals ? equals + 1 : NULL, err);
}

/* "-it", "-p8080:80", "-p 8080:80". */
static int parse_letters(const struct option_program *program, void *target, char **argv, int *at, struct err *err)
{
    for (const char *argument = argv[*at], *c = argument + 1; *c; c++) {
        const struct option_spec *spec = find_letter(program, *c);
        if (!spec)
            return unknown_option(program, argument, err);
        if (spec->value && !c[1])
            return apply_next(program, target, spec, argv, at, err);
        if (spec->value)
            return apply(program, target, spec, c + 1, err);
        int r = apply(program, target, spec, NULL, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Handles argv[*at]; moves *at when the value is the next argument. A number below zero, like "-1G", is no option. */
static int parse_one(const struct option_program *program, void *target, char **argv, int *at, bool *ret_operand, struct err *err)
{
    const char *argument = argv[*at];
    if (strncmp(argument, "--", 2) == 0 && argument[2])
        return parse_long(program, target, argv, at, err);
    bool is_letters = argument[0] == '-' && argument[1] && !isdigit((unsigned char)argument[1]);
    if (is_letters && argument[1] != '-')
        return parse_letters(program, target, argv, at, err);
    if (!program->operand || is_letters)
        return err_say(err, EINVAL, "unexpected argument '%s', see %s --help", argument, program->name);
    *ret_operand = true;
    return program->operand(target, argument, err);
}

int option_parse(const struct option_program *program, void *target, int argc, char **argv, struct err *err)
{
    bool rest = false;
    unsigned operands = 0;
    for (int at = 1; at < argc; at++) {
        bool is_operand = rest;
        if (!is_operand && program->operand && strcmp(argv[at], "--") == 0) {
            rest = true;
            continue;
        }
        int r = rest ? program->operand(target, argv[at], err) : parse_one(program, target, argv, &at, &is_operand, err);
        if (r < 0)
            return r;
        operands += is_operand;
        if (program->rest_after && operands >= program->rest_after && !rest) {
            rest = true;
            at += at + 1 < argc && strcmp(argv[at + 1], "--") == 0; /* "exec web -- ls" */
        }
    }
    return 0;
}

static bool has_letter(void *arg, const struct option_spec *spec)
{
    *(bool *)arg = option_letter(spec) != '\0';
    return !*(bool *)arg;
}

struct help {
    FILE *out;
    bool letters; /* of any option: leaves room for them */
};

static bool print_help_option(void *arg, const struct option_spec *spec)
{
    struct help *help = arg;
    if (is_heading(spec)) {
        fprintf(help->out, "\n%s:\n", spec->help);
        return true;
    }
    if (!spec->help)
        return true;
    char letter[] = "    ";
    if (option_letter(spec))
        snprintf(letter, sizeof letter, "-%c, ", option_letter(spec));
    int width = fprintf(help->out, "  %s--%s%s%s", help->letters ? letter : "", option_name(spec), spec->value ? " " : "",
                        spec->value ? spec->value : "");
    if (width >= HELP_COLUMN)
        width = fprintf(help->out, "\n") * 0;
    fprintf(help->out, "%*s%s\n", HELP_COLUMN - width, "", spec->help);
    return true;
}

void option_print_help(const struct option_program *program, FILE *out)
{
    struct help help = {.out = out};
    fprintf(out, "%s: %s\n\nUsage: %s %s\n", program->name, program->summary, program->name, program->usage);
    option_each(program, has_letter, &help.letters);
    option_each(program, print_help_option, &help);
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

/* The page of "prog command" is called prog-command. */
static void page_name(const struct option_program *program, char *name, size_t size)
{
    snprintf(name, size, "%s", program->name);
    for (char *c = name; *c; c++)
        if (*c == ' ')
            *c = '-';
}

static bool print_man_option(void *arg, const struct option_spec *spec)
{
    FILE *out = arg;
    if (is_heading(spec)) {
        fprintf(out, ".SS %s\n", spec->help);
        return true;
    }
    if (!spec->help)
        return true;
    fputs(".TP\n", out);
    if (option_letter(spec))
        fprintf(out, "\\fB\\-%c\\fR, ", option_letter(spec));
    fputs("\\fB\\-\\-", out);
    for (const char *c = option_name(spec); *c; c++)
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
    return true;
}

void option_print_man(const struct option_program *program, FILE *out)
{
    char name[64];
    page_name(program, name, sizeof name);
    fputs(".TH ", out);
    print_upper(out, name);
    fprintf(out, " 1 \"\" \"Polder %s\" \"Polder manual\"\n.SH NAME\n", program->version);
    print_roff(out, name);
    fputs("\\- ", out);
    print_roff(out, program->summary);
    fprintf(out, ".SH SYNOPSIS\n.B %s\n", program->name);
    print_roff(out, program->usage);
    fputs(".SH DESCRIPTION\n", out);
    print_roff(out, program->description);
    fputs(".SH OPTIONS\n", out);
    option_each(program, print_man_option, out);
    for (const char *const *section = program->sections; section && *section; section += 2) {
        fputs(".SH ", out);
        print_upper(out, section[0]);
        fputc('\n', out);
        print_roff(out, section[1]);
    }
}
