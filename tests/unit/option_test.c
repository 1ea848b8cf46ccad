/* Option table: every form of an argument, each mistake, and what help and man page say. */
#include "cmocka_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/option.h"

struct values {
    const char *path;
    int flags;
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
    return option_parse(&program, values, argc + 1, argv, err);
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
        cmocka_unit_test(test_forms), cmocka_unit_test(test_mistakes), cmocka_unit_test(test_texts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
