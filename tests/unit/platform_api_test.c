/* The API without HTTP: the table of routes, checks of what clients send, who they are, operations, WebSocket framing. */
#include "cmocka_all.h"

#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/auth.h"
#include "api/events.h"
#include "api/fields.h"
#include "api/metrics.h"
#include "api/operation.h"
#include "api/schemas.h"
#include "api/websocket.h"

/* ---- the table ---- */

static void every_route_is_whole(void **state)
{
    (void)state;
    for (unsigned i = 0; i < route_count(); i++) {
        const struct route *route = route_at(i), *found;
        char params[ROUTE_PARAMS][ROUTE_PARAM_MAX], allow[64], path[256] = "";
        assert_int_equal(route_index(route), (int)i);
        assert_non_null(route->handler);
        assert_non_null(route->text);
        assert_true(route->role >= ROLE_VIEWER);
        assert_int_equal(route->schema != NULL, route->body == BODY_JSON || route->body == BODY_OPTIONAL);
        assert_int_equal(route->media != NULL, route->answer == ANSWER_STREAM);
        for (const char *c = route->path; *c; c++) /* "{name}" -> "a", "{id}" -> 16 zeros */
            if (*c == '{') {
                strcat(path, c[1] == 'i' ? "0000000000000000" : "a");
                c = strchr(c, '}');
            } else {
                strncat(path, c, 1);
            }
        assert_int_equal(route_find(route->method, path, &found, params, allow, NULL), 0);
        assert_ptr_equal(found, route); /* so none is there twice */
    }
}

static void paths_find_their_routes(void **state)
{
    const struct route *route;
    char params[ROUTE_PARAMS][ROUTE_PARAM_MAX], allow[64];
    struct err err = {0};
    (void)state;
    assert_int_equal(route_find("POST", "/v1/instances/web/snapshots/s-1/restore", &route, params, allow, &err), 0);
    assert_string_equal(params[0], "web");
    assert_string_equal(params[1], "s-1");
    assert_int_equal(route_find("GET", "/v1/instances/", &route, params, allow, &err), -ENOENT);
    assert_int_equal(route_find("GET", "/v1/instances/a/", &route, params, allow, &err), -ENOENT);
    assert_int_equal(route_find("GET", "/v1/instances/..", &route, params, allow, &err), -EINVAL);
    assert_int_equal(route_find("GET", "/v1/operations/x", &route, params, allow, &err), -EINVAL);
    assert_int_equal(route_find("PATCH", "/v1/tokens", &route, params, allow, &err), -ENOTSUP);
    assert_string_equal(allow, "GET, POST");
    char longest[300];
    snprintf(longest, sizeof longest, "/v1/instances/%0200d", 1);
    assert_int_equal(route_find("GET", longest, &route, params, allow, &err), -EINVAL);
}

static void the_reference_names_every_route(void **state)
{
    json_t *document = openapi_document(), *paths = json_object_get(document, "paths");
    size_t count = 0;
    const char *path;
    json_t *methods;
    (void)state;
    json_object_foreach(paths, path, methods)
        count += json_object_size(methods);
    assert_int_equal(count, route_count());
    assert_non_null(json_object_get(json_object_get(json_object_get(document, "components"), "schemas"), "InstanceSpec"));
    json_decref(document);
}

/* ---- bodies and parameters ---- */

static void lists_keep_the_members_that_were_asked_for(void **state)
{
    static const struct {
        const char *fields, *kept;
    } cases[] = {
        {"name", "[{\"name\":\"a\"},{\"name\":\"b\"}]"},
        {"nothing", "[{},{}]"},
        {"spec", "[{\"spec\":{\"image\":\"i\",\"ports\":[{\"host\":1},2],\"q\":\"}]\\\"\\\\\"}},{\"spec\":7}]"},
        {"spec.image,spec.q", "[{\"spec\":{\"image\":\"i\",\"q\":\"}]\\\"\\\\\"}},{}]"}, /* a spec that is none has no image */
        {"spec.ports,n,spec.none", "[{\"spec\":{\"ports\":[{\"host\":1},2]},\"n\":null},{}]"},
        {"spec.image,spec", "[{\"spec\":{\"image\":\"i\",\"ports\":[{\"host\":1},2],\"q\":\"}]\\\"\\\\\"}},{\"spec\":7}]"},
        {"spe,imag,spec.imag,names", "[{\"spec\":{}},{}]"}, /* not by their beginnings */
    };
    (void)state;
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[] = "[{\"name\":\"a\",\"spec\":{\"image\":\"i\",\"ports\":[{\"host\":1},2],\"q\":\"}]\\\"\\\\\"},\"n\":null},"
                      "{\"spec\":7,\"name\":\"b\"}]";
        fields_keep(text, cases[i].fields);
        assert_string_equal(text, cases[i].kept);
    }
    static const char *const broken[] = {"", "[", "[{", "[{\"", "[{\"name", "[{\"name\\", "[{\"name\"", "[{\"name\":",
                                         "[{\"name\":[{\"", "[{\"spec\":{"};
    for (unsigned i = 0; i < sizeof broken / sizeof *broken; i++) {
        char *text = strdup(broken[i]); /* so that a sanitizer sees a step too far */
        fields_keep(text, "name,spec.image");
        assert_true(strlen(text) <= strlen(broken[i]));
        free(text);
    }
}

static int check_body(const char *method, const char *path, const char *body, struct err *err)
{
    struct request request = {.body_fd = -1, .peer_fd = -1};
    char allow[64];
    assert_int_equal(route_find(method, path, &request.route, request.params, allow, err), 0);
    int r = request_set_body(&request, body, strlen(body), err);
    request_clear(&request);
    return r;
}

static void bodies_are_checked(void **state)
{
    static const struct {
        const char *body, *says; /* NULL: fine */
    } cases[] = {
        {"{\"image\":\"debian\"}", NULL},
        {"{\"image\":\"debian\",\"cpus\":null}", NULL},
        {"{\"image\":\"debian\",\"labels\":{\"a/b\":\"c\"},\"env\":[\"A=\"],\"ports\":[{\"host\":1,\"guest\":65535}]}", NULL},
        {"{}", "field 'image' is missing"},
        {"{\"image\":null}", "field 'image' is missing"},
        {"{\"image\":\"a b\"}", "image: must be an image reference"},
        {"{\"image\":\"a\",\"cpus\":33}", "cpus: must be 1 to 32"},
        {"{\"image\":\"a\",\"memory_bytes\":1}", "memory_bytes: must be 32 MiB to 1 TiB"},
        {"{\"image\":\"a\",\"cpus\":1.5}", "cpus: must be an integer"},
        {"{\"image\":\"a\",\"tty\":1}", "tty: must be true or false"},
        {"{\"image\":\"a\",\"env\":[\"A=1\",\"B\"]}", "env: [1]: must be NAME=VALUE"},
        {"{\"image\":\"a\",\"ports\":[{\"host\":0,\"guest\":1}]}", "ports: [0]: host: must be 1 to 65535"},
        {"{\"image\":\"a\",\"labels\":{\"\":\"x\"}}", "labels: ''"},
        {"{\"image\":\"a\",\"kind\":\"pod\"}", "kind: must be 'microvm' or 'vm'"},
        {"{\"image\":\"a\",\"networks\":[{\"address\":\"10.88.0.256\"}]}", "networks: [0]: address: must be an IPv4"},
        {"{\"image\":\"a\",\"image\":\"b\"}", "duplicate"},
        {"{\"image\":\"a\\u0000b\"}", "not JSON"},
        {"null", "not JSON"},
        {"", "a body is missing"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};
        int r = check_body("POST", "/v1/instances", cases[i].body, &err);
        assert_int_equal(r, cases[i].says ? -EINVAL : 0);
        if (cases[i].says && !strstr(err.message, cases[i].says))
            fail_msg("'%s' says '%s', not '%s'", cases[i].body, err.message, cases[i].says);
    }
}

static void parameters_are_checked(void **state)
{
    struct request request = {.body_fd = -1, .peer_fd = -1};
    char allow[64];
    struct err err = {0};
    (void)state;
    assert_int_equal(route_find("GET", "/v1/instances/a/logs", &request.route, request.params, allow, &err), 0);
    assert_int_equal(request_add_query(&request, "tail", "12", &err), 0);
    assert_int_equal(request_add_query(&request, "tail", "12", &err), -EINVAL);
    assert_int_equal(request_add_query(&request, "follow", "", &err), 0);
    assert_int_equal(request_add_query(&request, "source", "disk", &err), -EINVAL);
    assert_int_equal(request_add_query(&request, "source", "boot", &err), 0);
    assert_int_equal(request_add_query(&request, "nope", "", &err), -EINVAL);
    assert_int_equal(request_integer(&request, "tail", -1), 12);
    assert_true(request_flag(&request, "follow"));
    assert_string_equal(request_text(&request, "source"), "boot");
    request_clear(&request);
}

static void errors_have_their_status(void **state)
{
    (void)state;
    assert_int_equal(status_of_error(-ENOENT), 404);
    assert_int_equal(status_of_error(-EBUSY), 409);
    assert_int_equal(status_of_error(-EINVAL), 400);
    assert_int_equal(status_of_error(-EACCES), 403);
    assert_int_equal(status_of_error(-ENOSPC), 503);
    assert_int_equal(status_of_error(-EIO), 503);
    assert_int_equal(status_of_error(-EFAULT), 500);
    json_t *document = error_document(404, &(struct err){.message = "\xff not UTF-8"}); /* a guest's text may be anything */
    assert_non_null(json_object_get(json_object_get(document, "error"), "message"));
    json_decref(document);
}

/* ---- who ---- */

static struct store *open_store(char folder[64], char address[128])
{
    struct store *store;
    struct err err = {0};
    snprintf(folder, 64, "/tmp/polder-api-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(address, 128, "sqlite:%s/state.db", folder);
    if (store_open(address, &store, &err) < 0)
        fail_msg("%s", err.message);
    return store;
}

static void remove_store(struct store *store, const char *folder)
{
    char command[128];
    store_close(store);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

static void tokens_are_known_by_their_hash(void **state)
{
    char folder[64], address[128], token[TOKEN_SIZE], header[128];
    struct store *store = open_store(folder, address);
    struct actor actor = {0};
    json_t *document;
    struct err err = {0};
    (void)state;
    assert_int_equal(token_make("ci", ROLE_OPERATOR, "uid:0", token, &document, &err), 0);
    assert_int_equal(strlen(token), 71);
    assert_null(strstr(json_string_value(json_object_get(document, "hash")), token + 7));
    const struct store_op put = {.kind = STORE_PUT, .key = "tokens/ci", .value = document};
    assert_int_equal(store_commit(store, &put, 1, NULL, NULL, &err), 0);
    snprintf(header, sizeof header, "Bearer %s", token);
    assert_int_equal(auth_token(store, header, &actor, &err), 0);
    assert_string_equal(actor.name, "token:ci");
    assert_int_equal(actor.role, ROLE_OPERATOR);
    header[30] = header[30] == '0' ? '1' : '0';
    assert_int_equal(auth_token(store, header, &actor, &err), -EACCES);
    assert_int_equal(auth_token(store, "Bearer polder_", &actor, &err), -EACCES);
    json_decref(document);
    remove_store(store, folder);
}

static void peers_and_certificates(void **state)
{
    struct actor actor = {0};
    struct err err = {0};
    int pair[2];
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(auth_peer(pair[0], &actor, &err), 0);
    assert_int_equal(actor.role, ROLE_ADMIN);
    close(pair[0]);
    close(pair[1]);
    assert_int_equal(auth_subject("alice", "viewer", &actor, &err), 0);
    assert_string_equal(actor.name, "cert:alice");
    assert_int_equal(auth_subject("alice", "", &actor, &err), -EACCES);
    assert_int_equal(auth_subject("", "admin", &actor, &err), -EACCES);
}

/* ---- operations ---- */

static int succeed(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    (void)err;
    operation_progress(operation, arg, 1, 2);
    *ret_result = json_pack("{s:s}", "by", operation_audit(operation)->actor);
    return 0;
}

static int until_cancelled(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    (void)arg;
    (void)ret_result;
    while (!operation_cancelled(operation))
        usleep(1000);
    return err_say(err, ECANCELED, "asked to end");
}

static json_t *run_operation(struct platform *platform, operation_fn *fn, const char *arg, bool cancel)
{
    struct request request = {.platform = platform, .actor = {.name = "uid:7"}, .body_fd = -1, .peer_fd = -1};
    struct err err = {0};
    json_t *document;
    char id[17];
    assert_int_equal(request_reply_operation(&request, "test.run", fn, strdup(arg), free, &err, "tests/%d", 1), 0);
    snprintf(id, sizeof id, "%s", json_string_value(json_object_get(request.answer.json, "id")));
    request_clear(&request);
    if (cancel) {
        assert_int_equal(operations_cancel(platform->operations, id, &document, &err), 0);
        json_decref(document);
    }
    assert_int_equal(operations_get(platform->operations, id, UINT64_MAX, 60000, &document, &err), 0);
    return document;
}

static void open_operations(struct platform *platform)
{
    struct err err = {0};
    assert_int_equal(events_create(NULL, &platform->events, &err), 0);
    assert_int_equal(metrics_create(&platform->metrics, &err), 0);
    assert_int_equal(operations_create(platform->events, platform->metrics, &platform->operations, &err), 0);
}

static void close_operations(struct platform *platform)
{
    assert_true(operations_stop(platform->operations, 60000));
    operations_free(platform->operations);
    metrics_free(platform->metrics);
    events_free(platform->events);
}

static void operations_run_and_end(void **state)
{
    struct platform platform = {0};
    struct err err = {0};
    (void)state;
    open_operations(&platform);
    json_t *done = run_operation(&platform, succeed, "half", false);
    assert_string_equal(json_string_value(json_object_get(done, "state")), "succeeded");
    assert_string_equal(json_string_value(json_object_get(done, "target")), "tests/1");
    assert_string_equal(json_string_value(json_object_get(json_object_get(done, "result"), "by")), "uid:7");
    assert_string_equal(json_string_value(json_object_get(json_object_get(done, "progress"), "what")), "half");
    assert_int_equal(schema_check(&schema_operation, done, &err), 0);
    json_decref(done);
    done = run_operation(&platform, until_cancelled, "", true);
    assert_string_equal(json_string_value(json_object_get(done, "state")), "cancelled");
    json_decref(done);
    close_operations(&platform);
}

/* Goes on from step to step when the test lets it. */
static int in_steps(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    static const char *const steps[] = {"one", "two", "three"};
    (void)ret_result;
    (void)err;
    for (unsigned i = 0; i < 3; i++) {
        sem_wait(arg);
        operation_progress(operation, steps[i], 0, 0);
    }
    sem_wait(arg);
    return 0;
}

static void each_step_is_seen_by_who_waits(void **state)
{
    static const char *const seen[] = {"one", "two", "three"};
    struct platform platform = {0};
    struct request request = {.platform = &platform, .body_fd = -1};
    struct err err = {0};
    sem_t go;
    (void)state;
    open_operations(&platform);
    sem_init(&go, 0, 0);
    assert_int_equal(request_reply_operation(&request, "test.run", in_steps, &go, NULL, &err, "tests"), 0);
    json_t *document = json_incref(request.answer.json);
    for (unsigned step = 0; step < 3;) {
        json_t *next = NULL;
        const char *id = json_string_value(json_object_get(document, "id"));
        uint64_t revision = (uint64_t)json_integer_value(json_object_get(document, "revision"));
        if (revision >= step + 2) /* queued, running, each step */
            sem_post(&go);
        assert_int_equal(operations_get(platform.operations, id, revision, 60000, &next, &err), 0);
        json_decref(document);
        document = next;
        const json_t *progress = json_object_get(document, "progress");
        if (progress)
            assert_string_equal(json_string_value(json_object_get(progress, "what")), seen[step++]);
        assert_string_not_equal(json_string_value(json_object_get(document, "state")), "succeeded");
    }
    sem_post(&go);
    json_decref(document);
    request_clear(&request);
    close_operations(&platform);
    sem_destroy(&go);
}

static int fail_or_say(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    if (!arg)
        return err_say(err, ENOSPC, "no room");
    *ret_result = json_string(operation_audit(operation)->target);
    return 0;
}

static void a_request_runs_its_operation_itself(void **state)
{
    struct platform platform = {0};
    struct request request = {.platform = &platform, .body_fd = -1};
    struct err err = {0};
    json_t *result = NULL;
    (void)state;
    open_operations(&platform);
    assert_int_equal(request_run_operation(&request, "test.run", "tests/2", fail_or_say, &platform, &result, &err), 0);
    assert_string_equal(json_string_value(result), "tests/2");
    json_decref(result);
    assert_int_equal(request_run_operation(&request, "test.run", "tests/3", fail_or_say, NULL, &result, &err), -ENOSPC);
    assert_string_equal(err.message, "no room");
    json_t *list = operations_list(platform.operations);
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 0), "state")), "succeeded");
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 1), "state")), "failed");
    json_decref(list);
    close_operations(&platform);
}

/* ---- WebSocket ---- */

static void accept_is_as_the_rfc_says(void **state)
{
    char accept[32];
    (void)state;
    assert_true(websocket_accept("dGhlIHNhbXBsZSBub25jZQ==", accept)); /* RFC 6455 §1.3 */
    assert_string_equal(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_false(websocket_accept("short", accept));
}

static void take(void *arg, uint8_t stream, const uint8_t *data, size_t len)
{
    snprintf(arg, 32, "%u:%.*s", stream, (int)len, (const char *)data);
}

static void messages_come_and_go(void **state)
{
    /* binary, masked by 0: stream 0 and "hi" */
    static const uint8_t frame[] = {0x82, 0x83, 0, 0, 0, 0, 0, 'h', 'i'};
    struct websocket *websocket;
    struct err err = {0};
    char got[32] = "";
    uint8_t sent[32];
    int pair[2];
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(websocket_create(pair[0], frame, 4, &websocket, &err), 0); /* the first bytes came early */
    assert_int_equal(write(pair[1], frame + 4, sizeof frame - 4), sizeof frame - 4);
    assert_true(websocket_pump(websocket, true, take, got));
    assert_string_equal(got, "0:hi");
    assert_true(websocket_send(websocket, WEBSOCKET_STDOUT, "out", 3));
    assert_true(websocket_pump(websocket, false, take, got));
    assert_int_equal(read(pair[1], sent, sizeof sent), 6);
    assert_memory_equal(sent, "\x82\x04\x01out", 6);
    close(pair[1]);
    assert_false(websocket_pump(websocket, true, take, got));
    websocket_free(websocket);
    close(pair[0]);
}

static int connect_websocket(int pair[2], struct websocket **ret_websocket)
{
    struct err err = {0};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    return websocket_create(pair[0], NULL, 0, ret_websocket, &err);
}

/* Who takes the first only loses none of those that came with it. */
static void messages_come_one_by_one(void **state)
{
    static const uint8_t frames[] = {0x82, 0x82, 0, 0, 0, 0, 3, '{', 0x82, 0x82, 0, 0, 0, 0, 0, 'a', 0x82, 0x81, 0, 0, 0, 0, 0};
    static const char *const expected[] = {"3:{", "0:a", "0:"};
    struct websocket *websocket;
    char got[32] = "";
    int pair[2];
    (void)state;
    assert_int_equal(connect_websocket(pair, &websocket), 0);
    assert_int_equal(write(pair[1], frames, sizeof frames), sizeof frames);
    close(pair[1]);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(websocket_timeout(websocket, true, 1000), i ? 0 : 1000);
        assert_int_equal(websocket_timeout(websocket, false, 1000), 1000);
        assert_true(websocket_pump(websocket, true, take, got));
        assert_string_equal(got, expected[i]);
    }
    assert_false(websocket_pump(websocket, true, take, got));
    websocket_free(websocket);
    close(pair[0]);
}

/* The answers to its pings would else fill the memory. */
static void a_client_that_takes_no_answers_is_not_heard(void **state)
{
    static const uint8_t ping[] = {0x89, 0x80, 0, 0, 0, 0};
    struct websocket *websocket;
    char got[32] = "";
    int pair[2], idle = 0;
    (void)state;
    assert_int_equal(connect_websocket(pair, &websocket), 0);
    for (int i = 0; i < 1000000 && idle < 3; i++) {
        idle = send(pair[1], ping, sizeof ping, MSG_DONTWAIT) == sizeof ping ? 0 : idle + 1;
        assert_true(websocket_pump(websocket, true, take, got));
    }
    assert_int_equal(idle, 3);
    assert_int_equal(websocket_events(websocket, true), POLLOUT);
    websocket_free(websocket);
    close(pair[0]);
    close(pair[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_route_is_whole),         cmocka_unit_test(paths_find_their_routes),
        cmocka_unit_test(lists_keep_the_members_that_were_asked_for),
        cmocka_unit_test(the_reference_names_every_route), cmocka_unit_test(bodies_are_checked),
        cmocka_unit_test(parameters_are_checked),       cmocka_unit_test(errors_have_their_status),
        cmocka_unit_test(tokens_are_known_by_their_hash), cmocka_unit_test(peers_and_certificates),
        cmocka_unit_test(operations_run_and_end), cmocka_unit_test(each_step_is_seen_by_who_waits),
        cmocka_unit_test(a_request_runs_its_operation_itself), cmocka_unit_test(accept_is_as_the_rfc_says),
        cmocka_unit_test(messages_come_and_go),
        cmocka_unit_test(messages_come_one_by_one),     cmocka_unit_test(a_client_that_takes_no_answers_is_not_heard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
