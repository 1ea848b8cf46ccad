/* The command line of polder-vmm: what each option puts into the configuration, what is refused, what is checked before a
 * machine is built. */
#include "cmocka_all.h"

#include <errno.h>
#include <string.h>

#include "vmm/options.h"

static struct vmm_options options;
static struct err err;

static int set_up(void **state)
{
    (void)state;
    options = (struct vmm_options){.config = vm_config_new()};
    err = (struct err){0};
    return options.config ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    vm_config_free(options.config);
    return 0;
}

/* Parses arguments up to NULL. */
static int parse(const char *first, ...)
{
    char *argv[16] = {(char *)(uintptr_t)"polder-vmm"};
    int argc = 1;
    va_list args;
    va_start(args, first);
    for (const char *arg = first; arg && argc < 15; arg = va_arg(args, const char *))
        argv[argc++] = (char *)(uintptr_t)arg;
    va_end(args);
    return option_parse(&vmm_program, &options, argc, argv, &err);
}

static void refused(const char *option, const char *value, const char *word)
{
    err = (struct err){0};
    assert_int_equal(parse(option, value, NULL), -EINVAL);
    if (!strstr(err.message, word) || !strstr(err.message, option))
        fail_msg("'%s %s': %s", option, value, err.message);
}

static void test_machine(void **state)
{
    (void)state;
    assert_int_equal(parse("--kernel", "/k", "--initrd=/i", "--cmdline", "a b", "--cpus", "4", "--memory", "512", NULL), 0);
    assert_string_equal(options.config->kernel, "/k");
    assert_string_equal(options.config->initrd, "/i");
    assert_string_equal(options.config->cmdline, "a b");
    assert_int_equal(options.config->cpus, 4);
    assert_int_equal(options.config->memory_bytes, UINT64_C(512) << 20);
    assert_int_equal(parse("--memory", "2G", "--engine", "jit,cache=8M", "--jit-opt", "no-gather,no-near", "--cpu-model",
                           "x86-64-v3", "--no-reboot", NULL), 0);
    assert_int_equal(options.config->memory_bytes, UINT64_C(2) << 30);
    assert_string_equal(options.config->engine, "jit");
    assert_string_equal(options.config->engine_options, "cache=8M");
    assert_string_equal(options.config->jit_opt, "no-gather,no-near");
    assert_true(options.config->no_reboot);
}

static void test_devices(void **state)
{
    (void)state;
    assert_int_equal(parse("--disk", "/a", "--disk", "/b,ro,direct,format=qcow2", "--allow-backing", "/base", "--disk=/c,root", "--disk",
                           "/d,cache=writethrough,discard=off,iops=500,bps=10M", NULL),
                     0);
    const struct vm_config *config = options.config;
    assert_int_equal(config->disk_count, 4);
    assert_string_equal(config->disks[1].path, "/b");
    assert_true(config->disks[1].read_only && config->disks[1].direct && !config->disks[0].read_only);
    assert_string_equal(config->disks[1].format, "qcow2");
    assert_null(config->disks[0].format);
    assert_string_equal(config->allow_backing[0], "/base");
    assert_null(config->allow_backing[1]);
    assert_true(config->disks[2].root && config->disks[2].writeback);
    assert_string_equal(config->disks[2].id, "drive2");
    assert_true(config->disks[3].writethrough && config->disks[3].keep_discarded && config->disks[3].writeback);
    assert_true(config->disks[3].limit.ops.size == 500 && config->disks[3].limit.ops.refill_ms == 1000);
    assert_true(config->disks[3].limit.bandwidth.size == 10 << 20);
    assert_int_equal(parse("--net", "user,forward=8080:80,forward=22", "--net", "tap=t0,mac=06:00:ac:10:00:02", "--net", "none",
                           NULL), 0);
    assert_int_equal(config->net_count, 2);
    assert_string_equal(config->nets[0].forward, "8080:80,22:22");
    assert_string_equal(config->nets[1].tap, "t0");
    assert_int_equal(config->nets[1].mac[2], 0xac);
    assert_int_equal(parse("--vsock", "path=/v.sock,cid=42", "--balloon", "64", "--rng", NULL), 0);
    assert_true(config->vsock.present && config->vsock.cid == 42);
    assert_true(config->balloon.present && config->balloon.target_mib == 64 && config->entropy.present);
    assert_int_equal(parse("--console", "file=/log", "--virtio-console", "pty", NULL), 0);
    assert_int_equal(config->console.mode, VM_CONSOLE_FILE);
    assert_string_equal(config->console.path, "/log");
    assert_true(config->has_hvc && config->hvc.mode == VM_CONSOLE_PTY);
}

static void test_refused(void **state)
{
    (void)state;
    refused("--cpus", "0", "1 to 32");
    refused("--cpus", "33", "1 to 32");
    refused("--cpus", "-1", "number");
    refused("--cpus", "2x", "number");
    refused("--memory", "lots", "512M");
    refused("--memory", "99999999999T", "size");
    refused("--engine", "magic", "kvm");
    refused("--engine", "jit,tier=1", "interpret=on|off");
    refused("--engine", "jit,cache=1", "1M..1G");
    refused("--engine", "auto,interpret=perhaps", "on|off");
    refused("--engine", "kvm,interpret=on", "no options");
    refused("--jit-opt", "gather", "flagless");
    refused("--jit-opt", "no-gather,no-magic", "no-magic");
    refused("--jit-opt", "no-magic", " grow"); /* the last name */
    refused("--jit-opt", "", "no-NAME");
    refused("--cpu-model", "pentium", "x86-64-v2");
    refused("--disk", "/a,rw", "ro");
    refused("--disk", "/a,cache=none", "writethrough");
    refused("--disk", "/a,iops=0", "no rate");
    refused("--disk", "/a,bps=1x", "no rate");
    refused("--net", "carrier-pigeon", "tap=NAME");
    refused("--net", "tap=", "tap=NAME");
    refused("--net", "user,mac=01:00:00:00:00:00", "multicast");
    refused("--net", "user,mac=6:0:ac:10:0", "MAC");
    refused("--net", "user,forward=0:80", "ports");
    refused("--net", "user,forward=80:70000", "ports");
    refused("--net", "tap=t,forward=80", "forward");
    refused("--vsock", "cid=2,path=/v", "number");
    refused("--vsock", "cid=5", "complete");
    refused("--balloon", "much", "number");
    refused("--console", "teletype", "stdio");
    refused("--console", "file=", "file=PATH");
    refused("--log-level", "shout", "debug");
    while (options.config->disk_count < VM_MAX_DISKS)
        assert_int_equal(parse("--disk", "/x", NULL), 0);
    assert_int_equal(parse("--disk", "/x", NULL), -ENOSPC);
}

static void test_check(void **state)
{
    (void)state;
    assert_int_equal(vm_config_check(options.config, &err), -EINVAL);
    assert_non_null(strstr(err.message, "--kernel"));
    assert_int_equal(parse("--kernel", "/proc/self/exe", NULL), 0);
    assert_int_equal(vm_config_check(options.config, &err), 0);
    options.config->memory_bytes = 4096;
    assert_int_equal(vm_config_check(options.config, &err), -EINVAL);
    options.config->memory_bytes = UINT64_C(1) << 60;
    assert_int_equal(vm_config_check(options.config, &err), -ENOMEM);
    options.config->memory_bytes = UINT64_C(64) << 20;
    assert_int_equal(parse("--initrd", "/", NULL), 0);
    assert_int_equal(vm_config_check(options.config, &err), -EISDIR);
    assert_int_equal(parse("--initrd", "/proc/self/exe", "--disk", "/no-such-disk", NULL), 0);
    assert_int_equal(vm_config_check(options.config, &err), -ENOENT);
    assert_non_null(strstr(err.message, "/no-such-disk"));
}

static void test_every_option_is_documented(void **state)
{
    (void)state;
    for (const struct option_spec *spec = vmm_program.options; spec->name; spec++) {
        assert_non_null(spec->help);
        assert_true(!*spec->name || spec->set);
    }
}

#define WITH_CONFIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {WITH_CONFIG(test_machine), WITH_CONFIG(test_devices), WITH_CONFIG(test_refused),
                                       WITH_CONFIG(test_check), WITH_CONFIG(test_every_option_is_documented)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
