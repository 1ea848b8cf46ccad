/* The controller over machines that are plain processes: every step with its failures, and crashes at every commit.
 *
 * `launch` starts a real child and notes it as polder-vmm would be; what a guest would say is set by the test. A crash is a
 * controller that is closed at once; the next one has only the store and the pid files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "base/log.h"
#include "base/own.h"
#include "control/instance_impl.h"
#include "sandbox/sandbox.h"

/* What the machines do. */
static struct {
    atomic_int launches, greets, cleans, alive, asks, ends_now; /* the last: asked to end at once */
    atomic_int fail_launch, fail_greet, not_ready, fail_end; /* how many of the next ones */
    atomic_bool ends_at_once, ignores_stop;
    const char *last_words;
    bool violates; /* ends as the filter of system calls ends it */
    atomic_int code;
} world;

static char folder[64];
static struct store *store;

static bool counted_down(atomic_int *left)
{
    int now = atomic_load(left);
    while (now > 0 && !atomic_compare_exchange_weak(left, &now, now - 1)) {
    }
    return now > 0;
}

/* ---- the machines ---- */

static int make_folders(const char *id)
{
    const char *names[] = {"instances", "instances/"};
    for (int i = 0; i < 2; i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s%s", folder, names[i], i ? id : "");
        if (mkdir(path, 0700) < 0 && errno != EEXIST)
            return -errno;
    }
    return 0;
}

static int fake_launch(struct instance *instance, const json_t *doc, pid_t *ret_pid, int *ret_pidfd, struct err *err)
{
    (void)doc;
    atomic_fetch_add(&world.launches, 1);
    if (make_folders(instance->id) < 0 || counted_down(&world.fail_launch))
        return err_say(err, EIO, "the launch failed");
    signal(SIGSYS, SIG_DFL); /* not cmocka's handler: the child may get it at once */
    pid_t pid = fork();
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, 0);
        for (;;)
            pause();
    }
    *ret_pidfd = pidfd_open(pid, 0);
    *ret_pid = pid;
    return instance_pid_write(instance->owner, instance->id, pid, err);
}

static void end_machine(const struct instance *instance)
{
    pidfd_send_signal(instance->pidfd, world.violates ? SIGSYS : SIGKILL, NULL, 0);
}

static int fake_greet(struct instance *instance, const json_t *doc, json_t **ret_status, struct err *err)
{
    (void)doc;
    atomic_fetch_add(&world.greets, 1);
    if (counted_down(&world.not_ready))
        return -EAGAIN;
    if (counted_down(&world.fail_greet))
        return err_say(err, EREMOTEIO, "no such command");
    *ret_status = json_pack("{s:[s]}", "addresses", "10.88.0.2");
    if (world.ends_at_once)
        end_machine(instance);
    return 0;
}

static int fake_wait(struct instance *instance, struct agent_session **ret_session, struct err *err)
{
    (void)instance;
    (void)ret_session;
    return err_say(err, ECONNREFUSED, "no agent here");
}

static int fake_ask(struct instance *instance, const json_t *doc, unsigned timeout_ms, struct err *err)
{
    (void)doc;
    (void)err;
    atomic_fetch_add(timeout_ms ? &world.asks : &world.ends_now, 1);
    if (!world.ignores_stop)
        end_machine(instance);
    return 0;
}

static int fake_press(struct instance *instance, struct err *err)
{
    return fake_ask(instance, NULL, 1, err);
}

static int fake_pause(struct instance *instance, bool paused, struct err *err)
{
    (void)instance;
    (void)paused;
    (void)err;
    return 0;
}

static int fake_ended(struct instance *instance, const json_t *doc, int *ret_code, char *text, size_t size, struct err *err)
{
    (void)instance;
    (void)doc;
    if (counted_down(&world.fail_end))
        return err_say(err, EIO, "cannot give back");
    *ret_code = world.code;
    if (*ret_code < 0)
        snprintf(text, size, "%s", world.last_words ? world.last_words : "it broke");
    return 0;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int fake_clean(struct instance *instance, const json_t *doc, struct err *err)
{
    (void)doc;
    (void)err;
    own_free char *path = instance_path(folder, instance->id, NULL);
    atomic_fetch_add(&world.cleans, 1);
    nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}

static const struct instance_ops fake_ops = {
    .launch = fake_launch, .greet = fake_greet, .wait = fake_wait, .ask_to_stop = fake_ask, .press_power = fake_press,
    .set_paused = fake_pause, .ended = fake_ended, .clean = fake_clean,
};

/* ---- the frame ---- */

static struct instances *open_controller(void)
{
    struct instances_config config = {.store = store, .state_dir = folder, .run_dir = folder,
                                      .host_reserve_bytes = 1, .cpu_overcommit = 1000, .memory_overcommit = 1000};
    struct instances *instances = NULL;
    struct err err = {0};
    if (instances_open_with(&config, &fake_ops, &instances, &err) < 0)
        fail_msg("%s", err.message);
    return instances;
}

static int set_up(void **state)
{
    char address[128];
    struct err err = {0};
    memset(&world, 0, sizeof world);
    snprintf(folder, sizeof folder, "/tmp/instance_step_test.XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(address, sizeof address, "sqlite:%s/state.db", folder);
    assert_int_equal(store_open(address, &store, &err), 0);
    *state = open_controller();
    return 0;
}

static int tear_down(void **state)
{
    instances_close(*state);
    store_close(store);
    nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}

static void create(struct instances *instances, const char *name, const char *more)
{
    char text[256];
    struct err err = {0};
    own_json json_t *doc = NULL;
    snprintf(text, sizeof text, "{\"image\": \"x\", \"networks\": [], \"name\": \"%s\"%s}", name, more);
    own_json json_t *spec = json_loads(text, 0, NULL);
    if (instance_create(instances, spec, false, NULL, &doc, &err) < 0)
        fail_msg("%s", err.message);
}

static void succeeds(int ret, const struct err *err)
{
    if (ret < 0)
        fail_msg("%s", err->message);
}

static void assert_state(struct instances *instances, const char *name, const char *wanted)
{
    own_json json_t *doc = NULL;
    struct err err = {0};
    succeeds(instance_get(instances, name, &doc, &err), &err);
    assert_string_equal(json_text(instance_status(doc), "state"), wanted);
}

static uint64_t promised(void)
{
    struct store_doc doc = {0};
    if (store_get(store, ADMISSION_KEY, &doc, NULL) < 0)
        return 0;
    uint64_t bytes = admission_promised(doc.value).memory_bytes;
    store_doc_clear(&doc);
    return bytes;
}

/* ---- tests ---- */

static void starts_and_stops(void **state)
{
    struct instances *instances = *state;
    struct err err = {0};
    int code = 0;
    create(instances, "web", "");
    assert_state(instances, "web", "created");
    world.not_ready = 3;
    succeeds(instance_start(instances, "web", NULL, &err), &err);
    assert_state(instances, "web", "running");
    assert_int_equal(promised(), admission_need(256 << 20, 1).memory_bytes);
    succeeds(instance_start(instances, "web", NULL, &err), &err);
    assert_int_equal(world.launches, 1);
    assert_int_equal(instance_remove(instances, "web", false, NULL, &err), -EBUSY);
    world.code = 143;
    succeeds(instance_stop(instances, "web", 10, NULL, &err), &err);
    assert_state(instances, "web", "stopped");
    assert_int_equal(promised(), 0);
    succeeds(instance_wait(instances, "web", NULL, &code, &err), &err);
    assert_int_equal(code, 143);
    succeeds(instance_remove(instances, "web", false, NULL, &err), &err);
    assert_int_equal(instance_start(instances, "web", NULL, &err), -ENOENT);
}

static void kills_who_does_not_listen(void **state)
{
    struct instances *instances = *state;
    struct err err = {0};
    own_json json_t *doc = NULL;
    create(instances, "deaf", "");
    world.ignores_stop = true;
    world.code = -1;
    succeeds(instance_start(instances, "deaf", NULL, &err), &err);
    succeeds(instance_stop(instances, "deaf", 0, NULL, &err), &err);
    succeeds(instance_get(instances, "deaf", &doc, &err), &err);
    assert_int_equal(json_number(instance_status(doc), "exit_code"), 137);
    assert_int_equal(world.ends_now, 1);
}

/* Its own disk goes with it, so that nobody would miss what is not written. */
static void is_removed_without_a_word(void **state)
{
    struct instances *instances = *state;
    struct err err = {0};
    create(instances, "web", "");
    succeeds(instance_start(instances, "web", NULL, &err), &err);
    succeeds(instance_remove(instances, "web", true, NULL, &err), &err);
    assert_int_equal(world.asks + world.ends_now, 0);
}

static void writes_to_volumes_before_it_is_removed(void **state)
{
    struct instances *instances = *state;
    struct err err = {0};
    create(instances, "web", ", \"volumes\": [{\"volume\": \"data\", \"path\": \"/srv\"}]");
    succeeds(instance_start(instances, "web", NULL, &err), &err);
    succeeds(instance_remove(instances, "web", true, NULL, &err), &err);
    assert_int_equal(world.asks, 0);
    assert_int_equal(world.ends_now, 1);
}

static void pauses_and_resumes(void **state)
{
    struct instances *instances = *state;
    struct err err = {0};
    create(instances, "web", "");
    assert_int_equal(instance_pause(instances, "web", NULL, &err), -EBUSY);
    succeeds(instance_start(instances, "web", NULL, &err), &err);
    succeeds(instance_pause(instances, "web", NULL, &err), &err);
    assert_state(instances, "web", "paused");
    assert_int_equal(instance_start(instances, "web", NULL, &err), -EBUSY);
    succeeds(instance_resume(instances, "web", NULL, &err), &err);
    assert_state(instances, "web", "running");
    succeeds(instance_remove(instances, "web", true, NULL, &err), &err);
}

static void failures_are_told_and_give_back(void **state)
{
    struct instances *instances = *state;
    struct err err = {0};
    create(instances, "web", "");
    world.fail_launch = 1;
    assert_int_equal(instance_start(instances, "web", NULL, &err), -EIO);
    assert_non_null(strstr(err.message, "the launch failed"));
    assert_state(instances, "web", "failed");
    assert_int_equal(promised(), 0);
    world.fail_greet = 1;
    world.code = -1;
    assert_int_equal(instance_start(instances, "web", NULL, &err), -EIO);
    assert_non_null(strstr(err.message, "no such command"));
    assert_int_equal(promised(), 0);
    world.code = 0;
    succeeds(instance_start(instances, "web", NULL, &err), &err);
    world.fail_end = 1;
    succeeds(instance_stop(instances, "web", 1, NULL, &err), &err);
    assert_int_equal(promised(), 0);
}

/* The error in the status of `name` after its filter ended it. */
static void check_violation(struct instances *instances, const char *name, const char *says)
{
    struct err err = {0};
    int code = 0;
    own_json json_t *doc = NULL;
    create(instances, name, "");
    int ret = instance_start(instances, name, NULL, &err); /* it may have ended again already */
    assert_true(ret == 0 || ret == -EIO);
    succeeds(instance_wait(instances, name, NULL, &code, &err), &err);
    succeeds(instance_get(instances, name, &doc, &err), &err);
    assert_non_null(strstr(json_text(instance_status(doc), "error"), says));
}

static void violations_are_told(void **state)
{
    world.ends_at_once = world.violates = true;
    world.code = -1;
    check_violation(*state, "silent", "its jail forbids");
    world.last_words = "polder-vmm: " SANDBOX_VIOLATION "41";
    check_violation(*state, "said", world.last_words);
}

static void restarts_by_policy(void **state)
{
    struct instances *instances = *state;
    struct err err = {0};
    create(instances, "once", ", \"restart\": \"on-failure\"");
    world.ends_at_once = true;
    succeeds(instance_start(instances, "once", NULL, &err), &err);
    int code = -1;
    succeeds(instance_wait(instances, "once", NULL, &code, &err), &err);
    assert_int_equal(world.launches, 1);
    world.code = 7;
    succeeds(instance_start(instances, "once", NULL, &err), &err);
    while (world.launches < 4)
        usleep(10000);
    world.code = 0;
    succeeds(instance_wait(instances, "once", NULL, &code, &err), &err);
    assert_int_equal(promised(), 0);
}

static void removes_itself(void **state)
{
    struct instances *instances = *state;
    struct err err = {0};
    create(instances, "brief", ", \"remove\": true");
    world.ends_at_once = true;
    succeeds(instance_start(instances, "brief", NULL, &err), &err);
    own_json json_t *doc = NULL;
    while (!instance_get(instances, "brief", &doc, &err)) {
        json_decref(doc);
        doc = NULL;
        usleep(10000);
    }
    assert_int_equal(promised(), 0);
}

static void is_renamed_while_it_runs(void **state)
{
    struct instances *instances = *state;
    struct err err = {0};
    own_json json_t *doc = NULL;
    create(instances, "old", "");
    create(instances, "taken", "");
    succeeds(instance_start(instances, "old", NULL, &err), &err);
    assert_int_equal(instance_rename(instances, "old", "taken", NULL, &doc, &err), -EEXIST);
    assert_int_equal(instance_rename(instances, "old", "Bad", NULL, &doc, &err), -EINVAL);
    succeeds(instance_rename(instances, "old", "new", NULL, &doc, &err), &err);
    assert_state(instances, "new", "running");
    assert_int_equal(instance_stop(instances, "old", 1, NULL, &err), -ENOENT);
    succeeds(instance_remove(instances, "new", true, NULL, &err), &err);
}

static void is_taken_over(void **state)
{
    struct err err = {0};
    create(*state, "web", "");
    succeeds(instance_start(*state, "web", NULL, &err), &err);
    instances_close(*state);
    *state = open_controller();
    assert_state(*state, "web", "running");
    assert_int_equal(world.launches, 1);
    succeeds(instance_stop(*state, "web", 1, NULL, &err), &err);
    succeeds(instance_remove(*state, "web", false, NULL, &err), &err);
    assert_int_equal(world.launches, 1);
}

static bool at_once(void *arg)
{
    (void)arg;
    return true;
}

/* Closing at any time stands for a crash: what a step had not committed is as if it had not been. */
static void converges_after_crashes(void **state)
{
    struct err err = {0};
    create(*state, "web", "");
    for (int round = 0; round < 40; round++) {
        bool up = round % 3 != 2;
        /* a call that is cancelled at once leaves what is desired behind; the controller is closed in the midst of it */
        struct instance_call call = {.cancelled = at_once};
        int ret = up ? instance_start(*state, "web", &call, &err) : instance_stop(*state, "web", 0, &call, &err);
        if (ret != -ECANCELED && ret != -EBUSY)
            succeeds(ret, &err);
        usleep((useconds_t)(round * 37 % 5) * 1000);
        instances_close(*state);
        *state = open_controller();
    }
    succeeds(instance_remove(*state, "web", true, NULL, &err), &err);
    assert_int_equal(promised(), 0);
    /* no child is left but those that were reaped */
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
}

static void leftovers_go(void **state)
{
    char path[256];
    assert_int_equal(make_folders("0123456789abcdef"), 0);
    instances_close(*state);
    *state = open_controller();
    snprintf(path, sizeof path, "%s/instances/0123456789abcdef", folder);
    while (!access(path, F_OK))
        usleep(10000);
}

int main(void)
{
    log_threshold = LOG_ERROR;
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(starts_and_stops), TEST(kills_who_does_not_listen), TEST(is_removed_without_a_word),
        TEST(writes_to_volumes_before_it_is_removed), TEST(pauses_and_resumes), TEST(failures_are_told_and_give_back),
        TEST(violations_are_told), TEST(restarts_by_policy), TEST(removes_itself), TEST(is_renamed_while_it_runs),
        TEST(is_taken_over), TEST(converges_after_crashes), TEST(leftovers_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
