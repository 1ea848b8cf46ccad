/* The log: a message is a line, whatever is in it. */
#include "cmocka_all.h"

#include <string.h>
#include <unistd.h>

#include "base/log.h"

static void what_others_said_stays_one_line(void **state)
{
    char line[256] = "";
    int ends[2];
    (void)state;
    assert_int_equal(pipe(ends), 0);
    log_to(ends[1]);
    log_warn("the registry says '%s'", "no\n2026-01-01 error \033[2Jfine\x7f");
    log_to(STDERR_FILENO);
    ssize_t n = read(ends[0], line, sizeof line - 1);
    assert_true(n > 0);
    assert_ptr_equal(strchr(line, '\n'), line + n - 1);
    assert_non_null(strstr(line, " warn the registry says 'no?2026-01-01 error ?[2Jfine?'\n"));
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_others_said_stays_one_line)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
