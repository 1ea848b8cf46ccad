/* The engines there are, and which one a machine gets. */
#include "cpu/engine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "cpu/kvm/calibrate.h"

#define HARDWARE_SPEED UINT64_C(200000000) /* instructions a second; emulation stays two orders below */

const struct engine_class *const engine_classes[] = {
    &engine_kvm,
#ifdef POLDER_ENGINE_JIT
    &engine_jit,
#endif
    NULL,
};

static const struct engine_class *find_engine(const char *name)
{
    for (unsigned i = 0; engine_classes[i]; i++)
        if (!strcmp(engine_classes[i]->name, name))
            return engine_classes[i];
    return NULL;
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

/* True when /dev/kvm is there and runs guest code at hardware speed; says why in any case. */
static bool kvm_is_fast(const char *kvm_device, char ret_reason[ENGINE_REASON_SIZE])
{
    struct err why = {0};
    uint64_t start = now_us(), per_s = 0;
    if (engine_kvm.probe(kvm_device, &why) < 0 || kvm_calibrate(kvm_device, &per_s, &why) < 0) {
        snprintf(ret_reason, ENGINE_REASON_SIZE, "engine kvm cannot be used: %s", why.message);
        log_info("%s", ret_reason);
        return false;
    }
    bool fast = per_s > HARDWARE_SPEED;
    snprintf(ret_reason, ENGINE_REASON_SIZE,
             "/dev/kvm runs %.1f million instructions a second (measured in %llu us), hardware would run at least %llu "
             "million: %s", (double)per_s / 1e6, (unsigned long long)(now_us() - start),
             (unsigned long long)(HARDWARE_SPEED / 1000000u), fast ? "real virtualization" : "it only emulates");
    log_info("%s", ret_reason);
    return fast;
}

int engine_choose(const char *kvm_device, const struct engine_class **ret_class, char ret_reason[ENGINE_REASON_SIZE],
                  struct err *err)
{
    const struct engine_class *jit = find_engine("jit");
    struct err why = {0};
    bool fast = kvm_is_fast(kvm_device, ret_reason);
    if (fast || !jit) {
        *ret_class = &engine_kvm;
        if (!fast && engine_kvm.probe(kvm_device, err) < 0)
            return -err->code;
        log_info("engine kvm chosen");
        return 0;
    }
    if (jit->probe(NULL, &why) < 0)
        return err_say(err, why.code, "no engine can run on this host: %.180s", why.message);
    *ret_class = jit;
    log_info("engine jit chosen");
    return 0;
}

int engine_select(const char *name, const char *kvm_device, const struct engine_class **ret_class, struct err *err)
{
    char reason[ENGINE_REASON_SIZE];
    if (!strcmp(name, "auto"))
        return engine_choose(kvm_device, ret_class, reason, err);
    const struct engine_class *class = find_engine(name);
    if (!class)
        return err_say(err, EINVAL, "unknown engine '%s', give auto, kvm or jit", name);
    int r = class->probe(kvm_device, err);
    if (r < 0)
        return r;
    log_info("engine %s chosen as asked", name);
    *ret_class = class;
    return 0;
}
