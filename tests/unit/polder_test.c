/* The command line without a daemon: what options mean, the table of commands, what is shown, and hostile text. */
#include "cmocka_all.h"

#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "polder/cli.h"
#include "polder/complete.h"
#include "polder/help.h"
#include "polder/spec.h"
#include "polder/terminal.h"
#include "polder/text.h"

static const char *reference_path;

static void assert_json(json_t *json, const char *text)
{
    char *got = json_dumps(json, JSON_COMPACT | JSON_SORT_KEYS);
    assert_string_equal(got, text);
    free(got);
    json_decref(json);
}

/* ---- options ---- */

static void test_ports(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "0", "65536", "a", "80:", ":80", "1:2:3", "1.2.3:8080:80", "80/sctp",
                                       "8080:80/", "-1:80"};
    struct err err;
    json_t *port = NULL;
    assert_int_equal(spec_parse_port("8080:80", &port, &err), 0);
    assert_json(port, "{\"guest\":80,\"host\":8080,\"protocol\":\"tcp\"}");
    assert_int_equal(spec_parse_port("80/udp", &port, &err), 0);
    assert_json(port, "{\"guest\":80,\"host\":80,\"protocol\":\"udp\"}");
    assert_int_equal(spec_parse_port("127.0.0.1:8080:80/tcp", &port, &err), 0);
    assert_json(port, "{\"guest\":80,\"host\":8080,\"host_address\":\"127.0.0.1\",\"protocol\":\"tcp\"}");
    assert_int_equal(spec_parse_port("[::1]:8080:80", &port, &err), 0);
    assert_json(port, "{\"guest\":80,\"host\":8080,\"host_address\":\"::1\",\"protocol\":\"tcp\"}");
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(spec_parse_port(bad[i], &port, &err), -EINVAL);
}

static void test_volumes_and_networks(void **state)
{
    (void)state;
    static const char *const bad_volumes[] = {"", "data", "data:", "data:srv", "data:/", "/host:/srv", "./x:/srv", "data:/srv:rx"};
    static const char *const bad_networks[] = {"", ",address=1", "lan,address", "lan,address=", "lan,vlan=3"};
    struct err err;
    json_t *json = NULL;
    assert_int_equal(spec_parse_volume("data:/srv", &json, &err), 0);
    assert_json(json, "{\"path\":\"/srv\",\"read_only\":false,\"volume\":\"data\"}");
    assert_int_equal(spec_parse_volume("data:/srv:ro", &json, &err), 0);
    assert_json(json, "{\"path\":\"/srv\",\"read_only\":true,\"volume\":\"data\"}");
    for (unsigned i = 0; i < sizeof bad_volumes / sizeof *bad_volumes; i++)
        assert_int_equal(spec_parse_volume(bad_volumes[i], &json, &err), -EINVAL);
    assert_int_equal(spec_parse_network("lan", &json, &err), 0);
    assert_json(json, "{\"network\":\"lan\"}");
    assert_int_equal(spec_parse_network("lan,address=10.9.0.5,mac=52:54:00:00:00:01", &json, &err), 0);
    assert_json(json, "{\"address\":\"10.9.0.5\",\"mac\":\"52:54:00:00:00:01\",\"network\":\"lan\"}");
    for (unsigned i = 0; i < sizeof bad_networks / sizeof *bad_networks; i++)
        assert_int_equal(spec_parse_network(bad_networks[i], &json, &err), -EINVAL);
}

static void test_env(void **state)
{
    (void)state;
    struct err err = {0};
    char path[] = "/tmp/polder-env-XXXXXX";
    json_t *env = json_array();
    setenv("POLDER_TEST_HERE", "yes", 1);
    unsetenv("POLDER_TEST_GONE");
    assert_int_equal(spec_add_env(env, "A=b=c", &err), 0);
    assert_int_equal(spec_add_env(env, "POLDER_TEST_HERE", &err), 0);
    assert_int_equal(spec_add_env(env, "POLDER_TEST_GONE", &err), 0);
    assert_int_equal(spec_add_env(env, "=x", &err), -EINVAL);
    assert_int_equal(spec_add_env(env, "A=\xff", &err), -EINVAL);
    int fd = mkstemp(path);
    assert_int_equal(dprintf(fd, "# comment\n\n  B=1\r\nEMPTY=\n"), 25);
    close(fd);
    assert_int_equal(spec_add_env_file(env, path, &err), 0);
    assert_json(env, "[\"A=b=c\",\"POLDER_TEST_HERE=yes\",\"B=1\",\"EMPTY=\"]");
    unlink(path);
    assert_int_equal(spec_add_env_file(NULL, path, &err), -ENOENT);
}

/* Parses a command line as main() does and makes the spec. */
static int make_spec(json_t **ret_spec, struct err *err, int argc, char **argv)
{
    struct cli cli = {0};
    struct help_program program;
    static const struct command_group plain = {"", "", NULL};
    help_program(&program, &plain, command_find_plain("run"));
    assert_int_equal(args_init(&cli.args, argc), 0);
    int r = option_parse(&program.program, &cli.args, argc, argv, err);
    if (r == 0)
        r = spec_create(&cli, ret_spec, err);
    args_clear(&cli.args);
    return r;
}

#define SPEC(...) make_spec(&spec, &err, (int)(sizeof((const char *[]){"run", __VA_ARGS__}) / sizeof(char *)), \
                            (char *[]){(char[]){"run"}, __VA_ARGS__, NULL})

static void test_spec(void **state)
{
    (void)state;
    struct err err = {0};
    json_t *spec = NULL;
    assert_int_equal(SPEC("debian"), 0);
    assert_json(spec, "{\"image\":\"debian\",\"remove\":false,\"stdin\":false,\"tty\":false}");
    assert_int_equal(SPEC("-it", "--rm", "--name", "web", "-m", "512M", "--cpus=2", "--disk", "1G", "-e", "K=V", "debian", "ls", "-l"), 0);
    assert_json(spec, "{\"command\":[\"ls\",\"-l\"],\"cpus\":2,\"disk_bytes\":1073741824,\"env\":[\"K=V\"],\"image\":\"debian\","
                      "\"memory_bytes\":536870912,\"name\":\"web\",\"remove\":true,\"stdin\":true,\"tty\":true}");
    assert_int_equal(SPEC("--network", "none", "--entrypoint", "", "--label", "a=b", "--label", "c", "x"), 0);
    assert_json(spec, "{\"entrypoint\":[],\"image\":\"x\",\"labels\":{\"a\":\"b\",\"c\":\"\"},\"networks\":[],\"remove\":false,"
                      "\"stdin\":false,\"tty\":false}");
    spec = NULL;
    assert_int_equal(SPEC("-m", "lots", "debian"), -EINVAL);
    assert_int_equal(SPEC("--cpus", "0", "debian"), -EINVAL);
    assert_int_equal(SPEC("-p", "x", "debian"), -EINVAL);
    assert_non_null(strstr(err.message, "--publish: 'x' is no port"));
    assert_int_equal(SPEC("--label", "=x", "debian"), -EINVAL);
    assert_null(spec);
}

/* ---- the table ---- */

static void test_table(void **state)
{
    (void)state;
    unsigned count = 0;
    char word[64];
    for (const struct command_group *group = command_groups; group->name; group++)
        for (const struct command *command = group->commands; command->name; command++, count++) {
            assert_non_null(command->run);
            assert_true(command_operands_min(command) <= command_operands_max(command));
            assert_true(command->summary[strlen(command->summary) - 1] != '.');
            assert_ptr_equal(command_find(group, command->name), command);
            if (command_operands_max(command))
                assert_true(command_operand_word(command, 0, word, sizeof word));
        }
    assert_true(count > 50);
    const struct command *run = command_find_plain("run"), *cp = command_find_plain("cp");
    const struct command *stats = command_find_plain("stats"), *import = command_find(command_find_group("image"), "import");
    assert_int_equal(command_operands_min(run), 1);
    assert_int_equal(command_operands_max(run), UINT_MAX);
    assert_int_equal(command_operands_min(cp), 2);
    assert_int_equal(command_operands_max(cp), 2);
    assert_int_equal(command_operands_min(stats), 0);
    assert_int_equal(command_operands_min(import), 1);
    assert_int_equal(command_operands_max(import), 2);
    assert_true(command_operand_word(import, 1, word, sizeof word));
    assert_string_equal(word, "IMAGE");
    assert_false(command_operand_word(import, 2, word, sizeof word));
    assert_true(command_operand_word(stats, 5, word, sizeof word));
    assert_string_equal(word, "INSTANCE");
    assert_null(command_find_group(""));
    assert_null(command_find_plain("ls"));
}

static void test_reference(void **state)
{
    (void)state;
    char *text = NULL;
    size_t len = 0, size = 0;
    FILE *out = open_memstream(&text, &len), *file = fopen(reference_path, "re");
    char *committed = NULL;
    help_markdown(out);
    fclose(out);
    assert_non_null(file);
    assert_true(getdelim(&committed, &size, '\0', file) > 0);
    fclose(file);
    if (strcmp(text, committed) != 0)
        fail_msg("%s is not what the table says: polder help --markdown >%s", reference_path, reference_path);
    free(text);
    free(committed);
}

/* Every command's help and man page, and what they promise. */
static void test_help(void **state)
{
    (void)state;
    for (const struct command_group *group = command_groups; group->name; group++)
        for (const struct command *command = group->commands; command->name; command++) {
            struct help_program program;
            char *text = NULL, title[HELP_NAME_MAX + 16];
            size_t len = 0;
            FILE *out = open_memstream(&text, &len);
            help_program(&program, group, command);
            help_print(&program, group, command, out);
            help_man(&program, group, command, out);
            fclose(out);
            snprintf(title, sizeof title, "Usage: %s ", program.name);
            assert_non_null(strstr(text, title));
            assert_non_null(strstr(text, "--socket PATH"));
            assert_non_null(strstr(text, ".SH EXIT STATUS"));
            free(text);
        }
    assert_non_null(complete_script("bash"));
    assert_non_null(complete_script("zsh"));
    assert_non_null(complete_script("fish"));
    assert_null(complete_script("csh"));
}

/* ---- text ---- */

static void test_clean(void **state)
{
    (void)state;
    static const struct {
        const char *in, *keep, *out;
    } cases[] = {
        {"plain", "", "plain"},
        {"\033[31mred\033[0m", "", "?[31mred?[0m"},
        {"a\nb\tc", "", "a?b?c"},
        {"a\nb\r", "\n", "a\nb?"},
        {"\x7f\xc2\x9b" "31m", "", "?\?31m"},             /* DEL, C1 CSI */
        {"gr\xc3\xbc\xc3\x9f", "", "gr\xc3\xbc\xc3\x9f"},
        {"\xff\xc3(\xe2\x82", "", "?\?(?\?"},              /* not UTF-8, cut short */
        {"\xc0\x9b\xed\xa0\x80", "", "?\?\?\?\?"},           /* overlong, surrogate */
        {"a\xe2\x80\xae" "b", "", "a?b"},                /* right-to-left override */
    };
    char out[64];
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(text_clean(out, sizeof out, cases[i].in, cases[i].keep), strlen(cases[i].out));
        assert_string_equal(out, cases[i].out);
    }
    assert_int_equal(text_clean(out, 5, "ab\xc3\xbc\xc3\xbc", ""), 4); /* cut between characters */
    assert_int_equal(text_clean(out, 1, "abc", ""), 0);
    assert_string_equal(out, "");
}

static void test_numbers(void **state)
{
    (void)state;
    char text[TEXT_SHORT];
    static const struct {
        uint64_t bytes;
        const char *text;
    } sizes[] = {{0, "0 B"}, {999, "999 B"}, {1000, "1 KiB"}, {1536, "1.5 KiB"}, {268435456, "256 MiB"}, {1073741824, "1 GiB"},
                 {1610612736, "1.5 GiB"}, {UINT64_MAX, "16 EiB"}};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        text_size(text, sizes[i].bytes);
        assert_string_equal(text, sizes[i].text);
    }
    static const struct {
        int64_t seconds;
        const char *text;
    } spans[] = {{-5, "0 s"}, {119, "119 s"}, {120, "2 min"}, {7200, "2 h"}, {172800, "2 days"}};
    for (unsigned i = 0; i < sizeof spans / sizeof *spans; i++) {
        text_span(text, spans[i].seconds);
        assert_string_equal(text, spans[i].text);
    }
    time_t t;
    assert_true(text_parse_time("1970-01-02T00:00:01Z", &t));
    assert_int_equal(t, 86401);
    assert_true(text_parse_time("2026-11-26T08:03:44.252+01:00", &t));
    assert_int_equal(t, 1795676624);
    assert_false(text_parse_time("yesterday", &t));
    assert_false(text_parse_time("2026-11-26T08:03:44", &t));
}

static void test_width(void **state)
{
    (void)state;
    setlocale(LC_CTYPE, "C.UTF-8");
    char text[16] = "gr\xc3\xbc\xc3\x9f" "e";
    assert_int_equal(text_width(text), 5);
    text_cut(text, sizeof text, 5);
    assert_int_equal(text_width(text), 5);
    text_cut(text, sizeof text, 4);
    assert_string_equal(text, "gr\xc3\xbc\xe2\x80\xa6");
}

static void test_distance(void **state)
{
    (void)state;
    unsigned best = UINT_MAX;
    assert_int_equal(text_distance("", "abc"), 3);
    assert_int_equal(text_distance("stpo", "stop"), 1);
    assert_int_equal(text_distance("kitten", "sitting"), 3);
    assert_true(text_is_near("imag", "image", &best));
    assert_int_equal(best, 1);
    assert_false(text_is_near("imag", "images", &best)); /* no nearer */
    best = UINT_MAX;
    assert_false(text_is_near("web", "database", &best));
}

/* ---- terminal ---- */

static void filter(struct terminal_escape *escape, const char *in, const char *out, bool left)
{
    char buffer[64] = "";
    bool got = !left;
    size_t len = terminal_filter(escape, in, strlen(in), buffer, &got);
    assert_int_equal(len, strlen(out));
    assert_memory_equal(buffer, out, len);
    assert_int_equal(got, left);
}

static void test_leaving(void **state)
{
    (void)state;
    struct terminal_escape escape = {.keys = "\x10\x11"};
    filter(&escape, "ls\n", "ls\n", false);
    filter(&escape, "a\x10", "a", false); /* held back: the next key decides */
    filter(&escape, "b", "\x10" "b", false);
    filter(&escape, "\x10\x10\x11", "\x10", true);
    filter(&escape, "x\x10\x11y", "x", true);
    filter(&escape, "\x11", "\x11", false);
    escape = (struct terminal_escape){.keys = "\x1d"};
    filter(&escape, "abc\x1d", "abc", true);
    escape = (struct terminal_escape){.keys = ""};
    filter(&escape, "\x10\x11", "\x10\x11", false);
}

/* ---- answers ---- */

static void test_refusals(void **state)
{
    (void)state;
    struct err err;
    static const char known[] = "{\"error\":{\"code\":\"not_found\",\"message\":\"there is no instance 'web'\"}}";
    static const char *const broken[] = {"", "{", "[]", "{\"error\":{}}", "{\"error\":{\"message\":3}}", "<html>"};
    assert_int_equal(client_refused(404, known, strlen(known), &err), -ENOENT);
    assert_string_equal(err.message, "there is no instance 'web'");
    for (unsigned i = 0; i < sizeof broken / sizeof *broken; i++)
        assert_int_equal(client_refused(500, broken[i], strlen(broken[i]), &err), -EPROTO);
    assert_int_equal(client_refused(500, NULL, 0, &err), -EPROTO);
}

static void test_paths(void **state)
{
    (void)state;
    struct err err;
    char path[CLIENT_URL_MAX], longest[CLIENT_URL_MAX];
    assert_int_equal(client_path(path, &err, "/v1/%s/x?n=%d&p=%s", "a/../b c", 7, "\xff&=%"), 0);
    assert_string_equal(path, "/v1/a%2F..%2Fb%20c/x?n=7&p=%FF%26%3D%25");
    memset(longest, ' ', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(client_path(path, &err, "/v1/%s/%s", longest, longest), -ENAMETOOLONG);
}

int main(int argc, char **argv)
{
    reference_path = argc > 1 ? argv[1] : "docs/guide/reference.md";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ports), cmocka_unit_test(test_volumes_and_networks), cmocka_unit_test(test_env),
        cmocka_unit_test(test_spec), cmocka_unit_test(test_table), cmocka_unit_test(test_reference), cmocka_unit_test(test_help),
        cmocka_unit_test(test_clean), cmocka_unit_test(test_numbers), cmocka_unit_test(test_width), cmocka_unit_test(test_distance),
        cmocka_unit_test(test_leaving), cmocka_unit_test(test_refusals), cmocka_unit_test(test_paths)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
