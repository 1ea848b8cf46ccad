/* Option table: every form of an argument, each mistake, and what help and man page say. */
#include "cmocka_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/option.h"

struct values {
    const char *path;
    int flags;
    const char *operand;
    int operands;
};

static int set_path(void *target, const char *value, struct err *err)
{
    if (!strcmp(value, "bad"))
        return err_say(err, EINVAL, "'%s' is no good", value);
    ((struct values *)target)->path = value;
    return 0;
}

static int set_flag(void *target, const char *value, struct err *err)
{
    (void)err;
    assert_null(value);
    ((struct values *)target)->flags++;
    return 0;
}

static const struct option_spec options[] = {
    {"", NULL, "Things", NULL, NULL},
    {"path", "PATH", "a path", ".more about it", set_path},
    {"flag", NULL, "a flag", NULL, set_flag},
    {NULL, NULL, NULL, NULL, NULL},
};

static const struct option_program program = {
    .name = "prog", .version = "1", .summary = "does things", .description = "One.\n\nTwo.", .usage = "[OPTION...]",
    .options = options};

static int take_operand(void *target, const char *value, struct err *err)
{
    (void)err;
    struct values *values = target;
    values->operand = value;
    values->operands++;
    return 0;
}

static const struct option_letter letters[] = {{'p', "path"}, {'x', "flag"}, {0, NULL}};

static const struct option_program with_operands = {
    .name = "prog", .options = options, .letters = letters, .operand = take_operand};

static const struct option_program *used = &program;

static int parse(struct values *values, struct err *err, int argc, ...)
{
    char *argv[8] = {NULL};
    char name[] = "prog";
    argv[0] = name;
    va_list args;
    va_start(args, argc);
    for (int i = 1; i <= argc; i++)
        argv[i] = va_arg(args, char *);
    va_end(args);
    *values = (struct values){0};
    *err = (struct err){0};
    return option_parse(used, values, argc + 1, argv, err);
}

static void test_forms(void **state)
{
    (void)state;
    struct values v;
    struct err err;
    assert_int_equal(parse(&v, &err, 3, "--path", "/a", "--flag"), 0);
    assert_string_equal(v.path, "/a");
    assert_int_equal(v.flags, 1);
    assert_int_equal(parse(&v, &err, 2, "--path=/b=c", "--path="), 0);
    assert_string_equal(v.path, "");
    assert_int_equal(parse(&v, &err, 2, "--path", "--flag"), 0);
    assert_string_equal(v.path, "--flag");
}

static void test_mistakes(void **state)
{
    (void)state;
    struct values v;
    struct err err;
    assert_int_equal(parse(&v, &err, 1, "--nope"), -EINVAL);
    assert_non_null(strstr(err.message, "--nope"));
    assert_int_equal(parse(&v, &err, 1, "stray"), -EINVAL);
    assert_non_null(strstr(err.message, "stray"));
    assert_int_equal(parse(&v, &err, 1, "--path"), -EINVAL);
    assert_non_null(strstr(err.message, "--path PATH"));
    assert_int_equal(parse(&v, &err, 1, "--flag=1"), -EINVAL);
    assert_int_equal(parse(&v, &err, 1, "--path=bad"), -EINVAL);
    assert_string_equal(err.message, "--path: 'bad' is no good");
    assert_int_equal(parse(&v, &err, 1, "--pat=x"), -EINVAL);
    assert_int_equal(parse(&v, &err, 1, "--"), -EINVAL);
    assert_int_equal(parse(&v, &err, 1, "-p"), -EINVAL);
}

static void test_letters_and_operands(void **state)
{
    (void)state;
    struct values v;
    struct err err;
    used = &with_operands;
    assert_int_equal(parse(&v, &err, 5, "-p", "/a", "one", "-x", "two"), 0);
    assert_string_equal(v.path, "/a");
    assert_int_equal(v.flags, 1);
    assert_int_equal(v.operands, 2);
    assert_int_equal(parse(&v, &err, 2, "-p/b", "-"), 0);
    assert_string_equal(v.path, "/b");
    assert_string_equal(v.operand, "-");
    assert_int_equal(parse(&v, &err, 3, "--", "-x", "--flag"), 0);
    assert_int_equal(v.operands, 2);
    assert_int_equal(v.flags, 0);
    assert_int_equal(parse(&v, &err, 1, "-y"), -EINVAL);
    assert_int_equal(parse(&v, &err, 1, "-xy"), -EINVAL);
    assert_int_equal(parse(&v, &err, 1, "-p"), -EINVAL);
    used = &program;
}

static const struct option_spec shared_options[] = {
    {"", NULL, "Shared", NULL, NULL}, {"q,quiet", NULL, "less", NULL, set_flag}, {NULL, NULL, NULL, NULL, NULL}};
static const struct option_spec *const shared[] = {shared_options, NULL};
static const struct option_spec lettered[] = {
    {"p,path", "PATH", "a path", NULL, set_path}, {"x,flag", NULL, "a flag", NULL, set_flag}, {NULL, NULL, NULL, NULL, NULL}};

static const struct option_program with_rest = {
    .name = "prog run", .version = "1", .summary = "runs", .description = "It.", .usage = "NAME",
    .options = lettered, .shared = shared, .operand = take_operand, .rest_after = 1};

static void test_rest_and_shared(void **state)
{
    (void)state;
    struct values v;
    struct err err;
    used = &with_rest;
    assert_int_equal(parse(&v, &err, 5, "-xqp", "/a", "name", "-x", "--nope"), 0);
    assert_int_equal(v.flags, 2);
    assert_string_equal(v.path, "/a");
    assert_int_equal(v.operands, 3);
    assert_string_equal(v.operand, "--nope");
    assert_int_equal(parse(&v, &err, 4, "--quiet", "name", "--", "--"), 0); /* one -- may part the rest off */
    assert_int_equal(v.flags, 1);
    assert_int_equal(v.operands, 2);
    assert_string_equal(v.operand, "--");
    assert_int_equal(parse(&v, &err, 1, "-xz"), -EINVAL);
    assert_string_equal(err.message, "unknown option '-xz', see prog run --help");
    used = &program;

    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    option_print_help(&with_rest, out);
    option_print_man(&with_rest, out);
    fclose(out);
    assert_non_null(strstr(text, "\nUsage: prog run NAME\n"));
    assert_non_null(strstr(text, "  -p, --path PATH"));
    assert_non_null(strstr(text, "\nShared:\n  -q, --quiet"));
    assert_non_null(strstr(text, ".TH PROG-RUN 1"));
    free(text);
}

static void test_texts(void **state)
{
    (void)state;
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    option_print_help(&program, out);
    option_print_man(&program, out);
    fclose(out);
    assert_non_null(strstr(text, "--path PATH"));
    assert_non_null(strstr(text, "Things:"));
    assert_non_null(strstr(text, "\\&.more about it")); /* not taken for a request */
    assert_non_null(strstr(text, "One.\n.PP\nTwo."));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms), cmocka_unit_test(test_mistakes), cmocka_unit_test(test_letters_and_operands),
        cmocka_unit_test(test_rest_and_shared), cmocka_unit_test(test_texts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
