/* Addresses, MACs and host ports from a real store: what one holds no other gets, and what is freed comes back. */
#include "cmocka_all.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "control/network_passt.h"
#include "control/network_pool.h"
#include "control/network_txn.h"

#define THREADS 6
#define EACH 20

static struct store *store;
static char folder[] = "/tmp/network-pool-XXXXXX";

static void add_network(const char *name, const char *subnet, enum network_kind kind)
{
    struct network_info info = {.kind = kind, .bridge = "pld-1", .mac = {{2}}, .created_at = "2026-01-02T03:04:05Z"};
    struct txn txn = {.count = 0};
    struct subnet parsed;
    assert_int_equal(subnet_parse(subnet, &parsed, NULL), 0);
    strcpy(info.name, name);
    network_set_subnet(&info, parsed);
    txn_put(&txn, 0, network_info_to_json(&info), "networks/%s", name);
    assert_int_equal(txn_commit(&txn, store, NULL, NULL), 0);
}

static int setup(void **state)
{
    (void)state;
    char address[64];
    struct err err = {0};
    strcpy(folder, "/tmp/network-pool-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(address, sizeof address, "sqlite:%s/state.db", folder);
    return store_open(address, &store, &err);
}

static int teardown(void **state)
{
    (void)state;
    static const char *const files[] = {"state.db", "state.db-wal", "state.db-shm", "state.db.lock"};
    store_close(store);
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
        char path[64];
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    return rmdir(folder);
}

static int attach(const char *id, const char *entry, const char *ports, struct pool_grant *grant, struct err *err)
{
    json_t *entry_json = json_loads(entry, 0, NULL), *ports_json = json_loads(ports, 0, NULL);
    struct network_request request = {.instance_id = id, .instance_name = id, .entry = entry_json, .ports = ports_json};
    int r = pool_attach(store, &request, grant, err);
    json_decref(entry_json);
    json_decref(ports_json);
    return r;
}

static size_t count(const char *prefix)
{
    struct store_list list;
    assert_int_equal(store_list_prefix(store, prefix, &list, NULL), 0);
    size_t n = list.count;
    store_list_clear(&list);
    return n;
}

static void a_lease_stays_until_it_is_released(void **state)
{
    (void)state;
    struct pool_grant first, again;
    add_network("lan", "10.88.0.0/24", NETWORK_NAT);
    assert_int_equal(attach("a", "{\"network\": \"lan\"}", "[{\"host\": 34567, \"guest\": 80}]", &first, NULL), 0);
    assert_true(first.is_new);
    assert_int_equal(count("host-ports/"), 1);
    assert_int_equal(pool_detach(store, "a", 0, false, NULL), 0);
    assert_int_equal(count("host-ports/"), 0);
    assert_int_equal(attach("a", "{\"network\": \"lan\"}", "[]", &again, NULL), 0);
    assert_false(again.is_new);
    assert_int_equal(first.lease.address, again.lease.address);
    assert_memory_equal(&first.lease.mac, &again.lease.mac, sizeof first.lease.mac);
    assert_int_equal(attach("a", "{\"network\": \"lan\", \"address\": \"10.88.0.99\"}", "[]", &again, NULL), 0);
    assert_int_equal(again.lease.address, 0x0a580063);
    assert_int_equal(count("addresses/lan/"), 1);
    assert_int_equal(pool_detach(store, "a", 0, true, NULL), 0);
    assert_int_equal(count("addresses/") + count("macs/") + count("leases/"), 0);
    assert_int_equal(pool_get_network(store, "lan", &again.network, NULL, NULL), 0);
    assert_int_equal(again.network.leases, 0);
}

static void an_address_rests_before_it_is_given_again(void **state)
{
    (void)state;
    struct pool_grant one, two;
    add_network("lan", "10.88.0.0/29", NETWORK_NAT);
    assert_int_equal(attach("a", "{\"network\": \"lan\"}", "[]", &one, NULL), 0);
    assert_int_equal(pool_detach(store, "a", 0, true, NULL), 0);
    assert_int_equal(attach("b", "{\"network\": \"lan\"}", "[]", &two, NULL), 0);
    assert_int_equal(one.lease.address + 1, two.lease.address);
}

static void host_ports_meet(void **state)
{
    (void)state;
    struct pool_grant grant;
    struct err err = {0};
    add_network("lan", "10.88.0.0/24", NETWORK_USER);
    static const char any[] = "[{\"host\": 80, \"guest\": 80}]";
    static const char loopback[] = "[{\"host_address\": \"127.0.0.1\", \"host\": 80, \"guest\": 80}]";
    static const char other[] = "[{\"host_address\": \"127.0.0.2\", \"host\": 80, \"guest\": 80}]";
    static const char udp[] = "[{\"host\": 80, \"guest\": 80, \"protocol\": \"udp\"}]";
    static const char lan[] = "{\"network\": \"lan\"}";
    assert_int_equal(attach("a", lan, loopback, &grant, NULL), 0);
    assert_int_equal(attach("b", lan, any, &grant, &err), -EBUSY);
    assert_non_null(strstr(err.message, "port 80 of the host"));
    assert_int_equal(attach("b", lan, loopback, &grant, NULL), -EBUSY);
    assert_int_equal(count("leases/b/"), 0);
    assert_int_equal(attach("b", lan, other, &grant, NULL), 0);
    assert_int_equal(attach("c", lan, udp, &grant, NULL), 0);
    assert_int_equal(attach("a", lan, loopback, &grant, NULL), 0);
    assert_int_equal(pool_detach(store, "a", 0, false, NULL), 0);
    assert_int_equal(attach("b", lan, any, &grant, NULL), 0);
}

/* Each instance has a passt of its own, which takes two addresses of the subnet: whichever the gateway is, the instance's is a
 * third. */
static void an_address_of_a_user_network_is_of_a_host(void **state)
{
    (void)state;
    struct pool_grant grant;
    struct err err = {0};
    for (uint32_t gateway = 0x0a580001; gateway < 0x0a580007; gateway++) {
        struct network_info info = {.name = "lan", .kind = NETWORK_USER, .gateway = gateway, .created_at = "2026-01-01T00:00:00Z"};
        char text[IPV4_TEXT_SIZE], entry[80], id[8];
        assert_int_equal(subnet_parse("10.88.0.0/29", &info.subnet, NULL), 0);
        json_t *document = network_info_to_json(&info);
        struct store_op op = {.kind = STORE_PUT, .key = "networks/lan", .value = document, .expected = STORE_ANY};
        assert_int_equal(store_commit(store, &op, 1, NULL, NULL, NULL), 0);
        json_decref(document);
        snprintf(id, sizeof id, "i%u", gateway & 7);
        assert_int_equal(attach(id, "{\"network\": \"lan\"}", "[]", &grant, NULL), 0);
        assert_true(subnet_is_host(info.subnet, grant.lease.address));
        assert_int_not_equal(grant.lease.address, gateway);
        assert_int_not_equal(grant.lease.address, passt_dns(&info));
        ipv4_format(passt_dns(&info), text);
        snprintf(entry, sizeof entry, "{\"network\": \"lan\", \"address\": \"%s\"}", text);
        assert_int_equal(attach("z", entry, "[]", &grant, &err), -EINVAL);
    }
}

static struct pool_grant grants[THREADS][EACH];

static void *work(void *arg)
{
    uintptr_t number = (uintptr_t)arg;
    for (unsigned i = 0; i < EACH; i++) {
        char id[16];
        struct err err = {0};
        snprintf(id, sizeof id, "i%u-%u", (unsigned)number, i);
        if (attach(id, "{\"network\": \"lan\"}", "[]", &grants[number][i], &err) < 0)
            return strdup(err.message);
        if (i % 4 == 3 && (pool_detach(store, id, 0, true, &err) < 0 ||
                           attach(id, "{\"network\": \"lan\"}", "[]", &grants[number][i], &err) < 0))
            return strdup(err.message);
    }
    return NULL;
}

static void threads_never_get_the_same(void **state)
{
    (void)state;
    pthread_t threads[THREADS];
    static bool seen[256];
    memset(seen, 0, sizeof seen);
    add_network("lan", "10.88.0.0/25", NETWORK_NAT); /* 125 for 120 */
    for (uintptr_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, work, (void *)i), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        void *message;
        pthread_join(threads[i], &message);
        if (message)
            fail_msg("%s", (char *)message);
    }
    for (unsigned i = 0; i < THREADS * EACH; i++) {
        bool *at = &seen[grants[i / EACH][i % EACH].lease.address & 0xff];
        assert_false(*at);
        *at = true;
    }
    assert_int_equal(count("macs/"), THREADS * EACH);
    struct network_info info;
    assert_int_equal(pool_get_network(store, "lan", &info, NULL, NULL), 0);
    assert_int_equal(info.leases, THREADS * EACH);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_lease_stays_until_it_is_released, setup, teardown),
        cmocka_unit_test_setup_teardown(an_address_rests_before_it_is_given_again, setup, teardown),
        cmocka_unit_test_setup_teardown(host_ports_meet, setup, teardown),
        cmocka_unit_test_setup_teardown(an_address_of_a_user_network_is_of_a_host, setup, teardown),
        cmocka_unit_test_setup_teardown(threads_never_get_the_same, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
