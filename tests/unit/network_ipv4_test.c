/* Addresses, subnets and MAC addresses: every form, each mistake, the edges of each range. */
#include "cmocka_all.h"

#include <string.h>

#include "control/network_ipv4.h"

static uint32_t address(const char *text)
{
    uint32_t value;
    assert_true(ipv4_parse(text, &value));
    return value;
}

static struct subnet subnet(const char *text)
{
    struct subnet value;
    struct err err = {0};
    if (subnet_parse(text, &value, &err) < 0)
        fail_msg("%s", err.message);
    return value;
}

static void addresses(void **state)
{
    (void)state;
    char text[IPV4_TEXT_SIZE];
    uint32_t value;
    assert_int_equal(address("10.88.0.1"), 0x0a580001);
    ipv4_format(0xfffefdfc, text);
    assert_string_equal(text, "255.254.253.252");
    static const char *const bad[] = {"", "10", "10.88.0", "10.88.0.256", "10.88.0.1 ", " 10.88.0.1", "10.88.0.1\n", "::1",
                                      "10.88.0.1.2", "0x0a.1.1.1"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(ipv4_parse(bad[i], &value));
    assert_false(ipv4_parse(NULL, &value));
}

static void subnets(void **state)
{
    (void)state;
    char text[SUBNET_TEXT_SIZE];
    struct subnet s = subnet("10.88.0.0/24");
    assert_int_equal(subnet_mask(s), 0xffffff00);
    assert_int_equal(subnet_broadcast(s), address("10.88.0.255"));
    assert_false(subnet_is_host(s, address("10.88.0.0")));
    assert_true(subnet_is_host(s, address("10.88.0.1")));
    assert_true(subnet_is_host(s, address("10.88.0.254")));
    assert_false(subnet_is_host(s, address("10.88.0.255")));
    assert_false(subnet_is_host(s, address("10.88.1.1")));
    subnet_format(subnet("192.168.255.248/29"), text);
    assert_string_equal(text, "192.168.255.248/29");
    assert_int_equal(subnet("10.0.0.0/8").prefix, 8);
    assert_int_equal(subnet("100.64.0.0/10").prefix, 10);
}

static void bad_subnets(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"", "form"},
        {"10.88.0.0", "form"},
        {"10.88.0.0/", "form"},
        {"10.88.0.0/024", "form"},
        {"10.88.0.0/24x", "form"},
        {"10.88.0.0/-1", "form"},
        {"10.88.0/24", "form"},
        {"10.88.0.0/33", "form"},
        {"1111111111111111111111111111/8", "form"},
        {"10.0.0.0/7", "between /8 and /29"},
        {"10.88.0.0/30", "between /8 and /29"},
        {"10.88.0.1/24", "host bits"},
        {"8.8.8.0/24", "not private"},
        {"172.32.0.0/16", "not private"},
        {"192.0.0.0/8", "not private"},
        {"127.0.0.0/8", "not private"},
    };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct subnet s;
        struct err err = {0};
        assert_int_equal(subnet_parse(bad[i][0], &s, &err), -22);
        if (!strstr(err.message, bad[i][1]))
            fail_msg("'%s': %s", bad[i][0], err.message);
    }
}

static void overlap(void **state)
{
    (void)state;
    assert_true(subnets_overlap(subnet("10.0.0.0/8"), subnet("10.88.3.0/24")));
    assert_true(subnets_overlap(subnet("10.88.3.0/24"), subnet("10.0.0.0/8")));
    assert_true(subnets_overlap(subnet("10.88.3.0/24"), subnet("10.88.3.0/24")));
    assert_false(subnets_overlap(subnet("10.88.3.0/24"), subnet("10.88.2.0/24")));
}

static void first_free(void **state)
{
    (void)state;
    char text[SUBNET_TEXT_SIZE];
    struct subnet free_one, taken[] = {subnet("10.88.1.0/24"), subnet("10.88.0.0/24"), subnet("10.88.2.0/25")};
    assert_true(subnet_first_free(NULL, 0, &free_one));
    assert_int_equal(free_one.base, address("10.88.0.0"));
    assert_true(subnet_first_free(taken, 3, &free_one));
    subnet_format(free_one, text);
    assert_string_equal(text, "10.88.3.0/24");
    taken[0] = subnet("10.0.0.0/8");
    assert_false(subnet_first_free(taken, 1, &free_one));
}

static void macs(void **state)
{
    (void)state;
    char text[MAC_TEXT_SIZE];
    struct mac mac, again;
    assert_true(mac_parse("52:54:00:aB:Cd:09", &mac));
    mac_format(mac, text);
    assert_string_equal(text, "52:54:00:ab:cd:09");
    static const char *const bad[] = {"", "52:54:00:ab:cd", "52:54:00:ab:cd:0g", "52-54-00-ab-cd-09", "52:54:00:ab:cd:099",
                                      "52:54:00:ab:cd:0\n"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(mac_parse(bad[i], &mac));
    assert_true(mac_parse("01:00:5e:00:00:01", &mac));
    assert_false(mac_is_station(mac));
    assert_true(mac_parse("00:00:00:00:00:00", &mac));
    assert_false(mac_is_station(mac));
    mac = mac_random();
    assert_true(mac_is_station(mac));
    again = mac_random();
    for (unsigned i = 0; i < 3 && !memcmp(&mac, &again, sizeof mac); i++)
        again = mac_random();
    assert_memory_not_equal(&mac, &again, sizeof mac);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses), cmocka_unit_test(subnets),    cmocka_unit_test(bad_subnets),
        cmocka_unit_test(overlap),   cmocka_unit_test(first_free), cmocka_unit_test(macs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
