/* Programs are found beside the caller first, then in PATH's absolute folders. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include "base/own.h"
#include "base/program_find.h"

static void finds_what_lies_beside(void **state)
{
    (void)state;
    struct err err = {0};
    own_free char *path = NULL;
    setenv("PATH", "", 1);
    assert_int_equal(program_find("program_find_test", NULL, &path, &err), 0);
    assert_int_equal(path[0], '/');
    assert_string_equal(strrchr(path, '/'), "/program_find_test");
}

static void finds_in_path(void **state)
{
    (void)state;
    struct err err = {0};
    own_free char *path = NULL;
    setenv("PATH", ":bin:/nope:/bin:/usr/bin", 1);
    assert_int_equal(program_find("sh", NULL, &path, &err), 0);
    assert_string_equal(path, "/bin/sh");
}

static void says_what_to_install(void **state)
{
    (void)state;
    struct err err = {0};
    own_free char *path = NULL;
    setenv("PATH", "/bin", 1);
    assert_int_equal(program_find("no-such-program", "some-package", &path, &err), -ENOENT);
    assert_non_null(strstr(err.message, "install the package some-package"));
    assert_int_equal(program_find("../sh", NULL, &path, &err), -EINVAL);
    assert_int_equal(program_find("", NULL, &path, &err), -EINVAL);
    assert_null(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_lies_beside),
        cmocka_unit_test(finds_in_path),
        cmocka_unit_test(says_what_to_install),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
