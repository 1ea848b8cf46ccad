/* What users may write about networks, interfaces and ports; documents there and back; the text of the rules. */
#include "cmocka_all.h"

#include <errno.h>
#include <string.h>

#include "control/network_rules.h"

static json_t *parse(const char *text)
{
    json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(json);
    return json;
}

struct bad {
    const char *json, *message;
};

static void bad_networks(void **state)
{
    (void)state;
    static const struct bad bad[] = {
        {"[]", "must be a JSON object"},
        {"{}", "is not a name"},
        {"{\"name\": 1}", "'name' must be a string"},
        {"{\"name\": \"A\"}", "is not a name"},
        {"{\"name\": \"-a\"}", "is not a name"},
        {"{\"name\": \"../x\"}", "is not a name"},
        {"{\"name\": \"a\", \"colour\": 1}", "'colour' is not known"},
        {"{\"name\": \"a\", \"kind\": \"bridge\"}", "nat or user"},
        {"{\"name\": \"a\", \"isolated\": 1}", "true or false"},
        {"{\"name\": \"a\", \"subnet\": \"10.0.0.1/24\"}", "host bits"},
        {"{\"name\": \"a\", \"gateway\": \"10.0.0.1\"}", "goes with a subnet"},
        {"{\"name\": \"a\", \"subnet\": \"10.0.0.0/24\", \"gateway\": \"10.0.0.255\"}", "not a host address"},
        {"{\"name\": \"a\", \"subnet\": \"10.0.0.0/24\", \"gateway\": \"gw\"}", "is not an IPv4 address"},
    };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct network_info info;
        struct err err = {0};
        json_t *json = parse(bad[i].json);
        assert_int_equal(network_spec_parse(json, &info, &err), -EINVAL);
        if (!strstr(err.message, bad[i].message))
            fail_msg("%s: %s", bad[i].json, err.message);
        json_decref(json);
    }
}

static void bad_interfaces(void **state)
{
    (void)state;
    static const struct {
        const char *networks, *ports, *message;
    } bad[] = {
        {"{}", "[]", "'networks' must be an array"},
        {"[1]", "[]", "must be a JSON object"},
        {"[{},{},{},{},{},{},{},{},{}]", "[]", "at most 8 interfaces"},
        {"[{\"address\": \"10.0.0.300\"}]", "[]", "is not an IPv4 address"},
        {"[{\"mac\": \"33:00:00:00:00:00\"}]", "[]", "address of a station"},
        {"[{\"mac\": \"x\"}]", "[]", "address of a station"},
        {"[]", "[{\"host\": 1, \"guest\": 1}]", "need an interface"},
        {"[{}]", "{}", "'ports' must be an array"},
        {"[{}]", "[{\"host\": 0, \"guest\": 1}]", "'host' of a port forward"},
        {"[{}]", "[{\"host\": 1, \"guest\": 65536}]", "'guest' of a port forward"},
        {"[{}]", "[{\"host\": 1}]", "'guest' of a port forward"},
        {"[{}]", "[{\"host\": 1, \"guest\": 1, \"protocol\": \"sctp\"}]", "tcp or udp"},
        {"[{}]", "[{\"host\": 1, \"guest\": 1}, {\"host_address\": \"127.0.0.1\", \"host\": 1, \"guest\": 2}]", "twice"},
    };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err = {0};
        json_t *networks = parse(bad[i].networks), *ports = parse(bad[i].ports);
        assert_int_equal(network_check_spec(networks, ports, &err), -EINVAL);
        if (!strstr(err.message, bad[i].message))
            fail_msg("%s %s: %s", bad[i].networks, bad[i].ports, err.message);
        json_decref(networks);
        json_decref(ports);
    }
    assert_int_equal(network_check_spec(NULL, NULL, NULL), 0);
}

static struct network_info network(const char *spec)
{
    struct network_info info;
    json_t *json = parse(spec);
    assert_int_equal(network_spec_parse(json, &info, NULL), 0);
    json_decref(json);
    strcpy(info.bridge, "pld-1");
    strcpy(info.created_at, "2026-01-02T03:04:05Z");
    assert_true(mac_parse("52:54:00:00:00:01", &info.mac));
    return info;
}

static struct network_lease lease(const char *instance, uint32_t address, const char *ports)
{
    struct network_lease lease = {.network = "lan", .mac = {{2, 0, 0, 0, 0, (uint8_t)address}}, .address = address, .attached = true};
    strcpy(lease.instance, instance);
    strcpy(lease.name, instance);
    json_t *json = parse(ports);
    assert_int_equal(network_ports_parse(json, &lease.ports, NULL), 0);
    json_decref(json);
    return lease;
}

static void documents(void **state)
{
    (void)state;
    struct network_info info = network("{\"name\": \"lan\", \"subnet\": \"10.9.0.0/16\", \"isolated\": true}"), info_again;
    info.leases = 3;
    info.last_address = 0x0a090007;
    json_t *json = network_info_to_json(&info);
    assert_int_equal(network_info_from_json(json, &info_again, NULL), 0);
    assert_int_equal(info_again.gateway, 0x0a090001);
    assert_int_equal(info_again.leases, 3);
    assert_int_equal(info_again.last_address, 0x0a090007);
    assert_true(info_again.isolated);
    assert_string_equal(info_again.bridge, "pld-1");
    json_object_del(json, "bridge");
    assert_int_equal(network_info_from_json(json, &info_again, NULL), -EINVAL);
    json_decref(json);

    struct network_lease one = lease("web", 0x0a090002, "[{\"host\": 80, \"guest\": 8080, \"protocol\": \"udp\"}]"), one_again;
    json = network_lease_to_json(&one);
    assert_int_equal(network_lease_from_json(json, &one_again, NULL), 0);
    assert_memory_equal(&one.ports.port[0], &one_again.ports.port[0], sizeof one.ports.port[0]);
    assert_int_equal(one_again.ports.count, 1);
    assert_true(one_again.attached);
    assert_memory_equal(&one.mac, &one_again.mac, sizeof one.mac);
    json_object_set_new(json, "index", json_integer(NETWORK_INTERFACES_MAX));
    assert_int_equal(network_lease_from_json(json, &one_again, NULL), -EINVAL);
    json_decref(json);
}

static void has(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("'%s' is not in:\n%s", part, text);
}

static void rules(void **state)
{
    (void)state;
    struct network_info networks[] = {network("{\"name\": \"lan\", \"subnet\": \"10.9.0.0/16\"}"),
                                      network("{\"name\": \"quiet\", \"subnet\": \"10.8.0.0/16\", \"isolated\": true}"),
                                      network("{\"name\": \"easy\", \"kind\": \"user\", \"subnet\": \"10.7.0.0/16\"}")};
    struct network_lease leases[] = {
        lease("a", 0x0a090002, "[{\"host\": 80, \"guest\": 8080}, {\"host_address\": \"127.0.0.1\", \"host\": 81, \"guest\": 9}]"),
        lease("b", 0x0a090003, "[]"), lease("c", 0x0a090004, "[]")};
    strcpy(networks[1].bridge, "pld-2");
    strcpy(leases[2].network, "easy");
    struct network_state all = {networks, 3, leases, 3};
    char *text = network_rules_text("polder", &all);
    assert_non_null(text);
    has(text, "add table inet polder\ndelete table inet polder\ntable inet polder {\n");
    has(text, "set bridges { type ifname; elements = { \"pld-1\", \"pld-2\" }; }");
    has(text, "set open_bridges { type ifname . ifname; elements = { \"pld-1\" . \"pld-1\" }; }");
    has(text, "elements = { 80 : 10.9.0.2 . 8080 };");
    has(text, "elements = { 127.0.0.1 . 81 : 10.9.0.2 . 9 };");
    has(text, "map udp_any { type inet_service : ipv4_addr . inet_service; }");
    has(text, "elements = { \"plt020000000002\" . 02:00:00:00:00:02 . 10.9.0.2, \"plt020000000003\" . ");
    assert_null(strstr(text, "plt020000000004"));
    assert_null(strstr(text, "10.7.0.0"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_networks),
        cmocka_unit_test(bad_interfaces),
        cmocka_unit_test(documents),
        cmocka_unit_test(rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
