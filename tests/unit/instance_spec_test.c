/* Specs of instances: members, defaults, what does not go together; the main process as docker makes it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include "control/instance_spec.h"
#include "control/json.h"

static json_t *parse(const char *text)
{
    json_t *value = json_loads(text, 0, NULL);
    assert_non_null(value);
    return value;
}

static int check(const char *text, json_t **ret_spec, struct err *err)
{
    own_json json_t *body = parse(text);
    return instance_spec_check(body, ret_spec, err);
}

static void fills_in_defaults(void **state)
{
    (void)state;
    own_json json_t *spec = NULL;
    struct err err = {0};
    assert_int_equal(check("{\"image\": \"debian\"}", &spec, &err), 0);
    assert_int_equal(json_number(spec, "cpus"), 1);
    assert_int_equal(json_number(spec, "memory_bytes"), 256 << 20);
    assert_int_equal(json_number(spec, "disk_bytes"), 10ll << 30);
    assert_string_equal(json_text(spec, "kind"), "microvm");
    assert_string_equal(json_text(spec, "restart"), "no");
    assert_null(json_object_get(spec, "networks"));
    assert_null(json_object_get(spec, "name"));
}

static void refuses(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{}", "image"},
        {"[]", "object"},
        {"{\"image\": 5}", "image"},
        {"{\"image\": \"d\", \"imag\": 1}", "'imag'"},
        {"{\"image\": \"d\", \"name\": \"-a\"}", "name"},
        {"{\"image\": \"d\", \"name\": \"A\"}", "name"},
        {"{\"image\": \"d\", \"name\": \"a/b\"}", "name"},
        {"{\"image\": \"d\", \"cpus\": 0}", "cpus"},
        {"{\"image\": \"d\", \"cpus\": 33}", "cpus"},
        {"{\"image\": \"d\", \"cpus\": 1.5}", "cpus"},
        {"{\"image\": \"d\", \"memory_bytes\": 1}", "memory_bytes"},
        {"{\"image\": \"d\", \"env\": [\"A\"]}", "env"},
        {"{\"image\": \"d\", \"env\": [\"=A\"]}", "env"},
        {"{\"image\": \"d\", \"env\": \"A=1\"}", "env"},
        {"{\"image\": \"d\", \"command\": [1]}", "command"},
        {"{\"image\": \"d\", \"restart\": \"\"}", "restart"},
        {"{\"image\": \"d\", \"restart\": \"no|on-failure\"}", "restart"},
        {"{\"image\": \"d\", \"restart\": \"always\", \"remove\": true}", "remove"},
        {"{\"image\": \"d\", \"kind\": \"vm\", \"command\": [\"x\"]}", "command"},
        {"{\"image\": \"d\", \"volumes\": [{\"volume\": \"v\", \"path\": \"srv\"}]}", "path"},
        {"{\"image\": \"d\", \"volumes\": [{\"volume\": \"v\", \"path\": \"/\"}]}", "path"},
        {"{\"image\": \"d\", \"volumes\": [{\"volume\": \"v\", \"path\": \"/a/../b\"}]}", "path"},
        {"{\"image\": \"d\", \"volumes\": [{\"volume\": \"v\", \"path\": \"/a//b\"}]}", "path"},
        {"{\"image\": \"d\", \"volumes\": [{\"volume\": \"v\", \"path\": \"/a\", \"x\": 1}]}", "'x'"},
        {"{\"image\": \"d\", \"volumes\": [{\"volume\": \"v\", \"path\": \"/a\"}, {\"volume\": \"v\", \"path\": \"/b\"}]}", "twice"},
        {"{\"image\": \"d\", \"networks\": [], \"ports\": [{\"host\": 1, \"guest\": 1}]}", "ports"},
        {"{\"image\": \"d\", \"labels\": {\"\": \"x\"}}", "labels"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        own_json json_t *spec = NULL;
        struct err err = {0};
        assert_int_equal(check(cases[i][0], &spec, &err), -EINVAL);
        if (!strstr(err.message, cases[i][1]))
            fail_msg("%s: %s", cases[i][0], err.message);
    }
}

static void changes_what_may_change(void **state)
{
    (void)state;
    own_json json_t *spec = NULL;
    own_json json_t *changed = NULL;
    own_json json_t *fine = parse("{\"cpus\": 4, \"labels\": {\"a\": \"b\"}}");
    own_json json_t *bad = parse("{\"image\": \"other\"}");
    struct err err = {0};
    assert_int_equal(check("{\"image\": \"debian\"}", &spec, &err), 0);
    assert_int_equal(instance_spec_change(spec, fine, &changed, &err), 0);
    assert_int_equal(json_number(changed, "cpus"), 4);
    assert_int_equal(json_number(spec, "cpus"), 1);
    assert_int_equal(instance_spec_change(spec, bad, &changed, &err), -EINVAL);
}

/* spec, image, the arguments joined */
static void merges_command(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"{\"image\": \"d\"}", "{\"cmd\": [\"sh\"]}", "sh "},
        {"{\"image\": \"d\"}", "{\"entrypoint\": [\"e\"], \"cmd\": [\"c\"]}", "e c "},
        {"{\"image\": \"d\", \"command\": [\"x\"]}", "{\"entrypoint\": [\"e\"], \"cmd\": [\"c\"]}", "e x "},
        {"{\"image\": \"d\", \"entrypoint\": [\"y\"]}", "{\"entrypoint\": [\"e\"], \"cmd\": [\"c\"]}", "y "},
        {"{\"image\": \"d\", \"entrypoint\": [\"y\"], \"command\": [\"x\"]}", "{\"cmd\": [\"c\"]}", "y x "},
        {"{\"image\": \"d\", \"entrypoint\": [], \"command\": [\"x\"]}", "{\"entrypoint\": [\"e\"]}", "x "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        own_json json_t *spec = NULL;
        own_json json_t *process = NULL;
        own_json json_t *image = parse(cases[i][1]);
        struct err err = {0};
        char joined[64] = "";
        size_t at;
        json_t *arg;
        assert_int_equal(check(cases[i][0], &spec, &err), 0);
        assert_int_equal(instance_spec_process(spec, image, &process, &err), 0);
        json_array_foreach (json_object_get(process, "args"), at, arg)
            strcat(strcat(joined, json_string_value(arg)), " ");
        assert_string_equal(joined, cases[i][2]);
    }
}

static void merges_environment(void **state)
{
    (void)state;
    own_json json_t *spec = NULL;
    own_json json_t *process = NULL;
    own_json json_t *image = parse("{\"cmd\": [\"sh\"], \"env\": [\"PATH=/bin\", \"A=1\", \"AB=2\", \"junk\"], \"user\": \"www\","
                                   " \"workdir\": \"/srv\"}");
    struct err err = {0};
    assert_int_equal(check("{\"image\": \"d\", \"env\": [\"A=3\", \"C=4\"], \"user\": \"root\", \"tty\": true}", &spec, &err), 0);
    assert_int_equal(instance_spec_process(spec, image, &process, &err), 0);
    own_json json_t *wanted = parse("[\"PATH=/bin\", \"TERM=xterm\", \"A=3\", \"AB=2\", \"C=4\"]");
    assert_true(json_equal(json_object_get(process, "env"), wanted));
    assert_string_equal(json_text(process, "user"), "root");
    assert_string_equal(json_text(process, "cwd"), "/srv");
    assert_true(json_flag(process, "tty"));
}

static void nothing_to_run(void **state)
{
    (void)state;
    own_json json_t *spec = NULL;
    own_json json_t *process = NULL;
    own_json json_t *image = parse("{}");
    struct err err = {0};
    assert_int_equal(check("{\"image\": \"d\"}", &spec, &err), 0);
    assert_int_equal(instance_spec_process(spec, image, &process, &err), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fills_in_defaults), cmocka_unit_test(refuses),        cmocka_unit_test(changes_what_may_change),
        cmocka_unit_test(merges_command),    cmocka_unit_test(merges_environment), cmocka_unit_test(nothing_to_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
