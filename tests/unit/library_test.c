/* Libraries that are loaded when they are needed. */
#include "base/library.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"

#define MATH_FUNCTIONS(X) X(cbrt) X(hypot)
static struct {
    MATH_FUNCTIONS(LIBRARY_MEMBER)
} mathematics;

static struct library lib = {
    .file = "libm.so.6",
    .package = "libc6",
    .needed_for = "counting",
    .functions = (const char *const[]){MATH_FUNCTIONS(LIBRARY_ENTRY) NULL},
    .table = &mathematics,
};

static void functions_are_called_through_the_table(void **state)
{
    (void)state;
    assert_null(mathematics.cbrt);
    for (int i = 0; i < 2; i++)
        assert_int_equal(library_load(&lib, NULL), 0);
    assert_true(lib.loaded);
    assert_true(mathematics.cbrt(27) > 2.99 && mathematics.cbrt(27) < 3.01);
    assert_true(mathematics.hypot(3, 4) > 4.99 && mathematics.hypot(3, 4) < 5.01);
}

static void what_is_missing_is_said(void **state)
{
    (void)state;
    void *table[2] = {NULL, NULL};
    struct err err = {0};
    struct library none = lib;
    none.loaded = false;
    none.table = table;
    none.file = "libnowhere.so.9";
    none.package = "libnowhere9";
    assert_int_equal(library_load(&none, &err), -ENOENT);
    assert_non_null(strstr(err.message, "counting needs libnowhere.so.9 (apt-get install libnowhere9)"));
    none.file = lib.file;
    none.functions = (const char *const[]){"cbrt", "no_such_function", NULL};
    assert_int_equal(library_load(&none, &err), -ENOENT);
    assert_non_null(strstr(err.message, "libm.so.6 has no no_such_function"));
    assert_false(none.loaded);
    assert_null(table[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(functions_are_called_through_the_table),
        cmocka_unit_test(what_is_missing_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
