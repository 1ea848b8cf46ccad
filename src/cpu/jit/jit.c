/* The engine's class: creation, architectural state in and out, statistics. */
#include <Zydis/Zydis.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <x86intrin.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "cpu/jit/cache.h"
#include "cpu/jit/cache_impl.h"
#include "cpu/jit/interp.h"
#include "cpu/jit/kvmclock.h"
#include "cpu/jit/mmu.h"
#include "cpu/jit/perf_map.h"
#include "cpu/jit/profile.h"
#include "cpu/jit/run.h"
#include "cpu/jit/system.h"
#include "cpu/jit/vcpu.h"

#define CALIBRATION_NS 10000000u
#define VCPU_BYTES ((sizeof(struct jit_vcpu) + VCPU_HUGE_PAGE - 1) & ~(VCPU_HUGE_PAGE - 1))

/* Offsets in the XSAVE area (SDM 1 table 10-2, 13.4). The x87 pointers hold host addresses. */
#define XSAVE_X87_POINTERS 6
#define XSAVE_X87_POINTERS_END 24
#define XSAVE_MXCSR 24
#define XSAVE_HEADER 512

static int jit_probe(const char *kvm_device, struct err *err)
{
    (void)kvm_device;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2"))
        return err_say(err, ENOTSUP, "the jit engine needs a CPU with AVX2 and BMI2 (x86-64-v3)");
    return 0;
}

/* Both clocks at one moment. The quickest of a few tries: between two readings another thread may run for long. */
struct moment {
    uint64_t tsc, ns;
};

static struct moment moment_now(void)
{
    struct moment best = {0};
    uint64_t least = UINT64_MAX;
    for (unsigned i = 0; i < 5; i++) {
        uint64_t before = __rdtsc(), ns = clock_now_ns(), took = __rdtsc() - before;
        if (took < least)
            best = (struct moment){.tsc = before + took / 2, .ns = ns};
        least = took < least ? took : least;
    }
    return best;
}

static struct moment calibration_start;

static void begin_calibration(void)
{
    if (!calibration_start.ns)
        calibration_start = moment_now();
}

/* Measured over 10 ms at least, once, while other things are made ready. */
uint64_t host_tsc_khz(void)
{
    static uint64_t khz;
    if (khz)
        return khz;
    begin_calibration();
    uint64_t ns = clock_now_ns() - calibration_start.ns;
    if (ns < CALIBRATION_NS)
        nanosleep(&(struct timespec){.tv_nsec = (long)(CALIBRATION_NS - ns)}, NULL);
    struct moment end = moment_now();
    khz = (uint64_t)((unsigned __int128)(end.tsc - calibration_start.tsc) * 1000000u / (end.ns - calibration_start.ns));
    return khz;
}

static void *lazy_table(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static size_t page_table_bytes(const struct jit_engine *engine)
{
    return (size_t)(mem_size(engine->mem) / MEM_PAGE_SIZE) * sizeof(uint32_t);
}

static void jit_free(struct engine *base)
{
    struct jit_engine *engine = (struct jit_engine *)base;
    mem_set_write_hook(engine->mem, NULL, NULL);
    if (engine->code_pages)
        munmap(engine->code_pages, page_table_bytes(engine));
    if (engine->write_pages)
        munmap(engine->write_pages, page_table_bytes(engine));
    free(engine);
}

static int jit_create(const struct engine_config *config, struct engine **ret_engine, struct err *err)
{
    struct jit_options options;
    int result = jit_options_parse(config->options, &options, err);
    if (!result)
        result = jit_options_parse_opt(config->jit_opt, &options.off, err);
    if (result)
        return result;
    result = jit_probe(NULL, err);
    if (result)
        return result;
    result = run_install_signals(err);
    if (result)
        return result;
    struct jit_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return err_set(err, ENOMEM, "jit engine");
    begin_calibration();
    engine->base.class = &engine_jit;
    engine->options = options;
    if (options.perf_map)
        perf_map_open();
    engine->mem = config->mem;
    engine->machine = config->machine;
    engine->vcpu_count = config->vcpus;
    engine->cpuid = (struct cpuid_config){
        .model = config->cpu_model, .vcpus = config->vcpus, .kvm_clock = true, .serialize = true};
    engine->code_pages = lazy_table(page_table_bytes(engine));
    engine->write_pages = lazy_table(page_table_bytes(engine));
    if (!engine->code_pages || !engine->write_pages) {
        jit_free(&engine->base);
        return err_set(err, ENOMEM, "jit engine");
    }
    mem_set_write_hook(engine->mem, cache_host_wrote, engine);
    *ret_engine = &engine->base;
    return 0;
}

static void jit_vcpu_free(struct vcpu *vcpu)
{
    struct jit_vcpu *cpu = (struct jit_vcpu *)vcpu;
    if (!cpu)
        return;
    if (cpu->timer_made)
        timer_delete(cpu->timer);
    cpu->engine->vcpus[vcpu->index] = NULL;
    cache_free(cpu);
    interp_free(cpu);
    munmap(cpu, VCPU_BYTES);
}

static int vcpu_init(struct jit_vcpu *cpu, struct err *err)
{
    tlb_init(cpu);
    requests_init(cpu);
    cpu->interpret_only = cpu->engine->options.interpret;
    int result = cache_create(cpu, (size_t)cpu->engine->options.cache_bytes, err);
    if (result)
        return result;
    if (interp_init(cpu))
        return err_set(err, ENOMEM, "interpreter");
    cpu->engine->cpuid.tsc_khz = host_tsc_khz(); /* the tables took some of its time */
    result = cpuid_table_build(&cpu->engine->cpuid, cpu->base.index, &cpu->cpuid, err);
    if (result)
        return result;
    uint32_t regs[4];
    cpuid_lookup(&cpu->cpuid, 0x80000008, 0, regs);
    cpu->phys_bits = (uint8_t)regs[0];
    system_reset(cpu, true);
    return 0;
}

static int jit_vcpu_create(struct engine *base, unsigned index, struct vcpu **ret_vcpu, struct err *err)
{
    struct jit_engine *engine = (struct jit_engine *)base;
    struct jit_vcpu *cpu = mem_map(VCPU_BYTES);
    if (!cpu)
        return err_set(err, ENOMEM, "vCPU %u", index);
    cpu->base.engine = base;
    cpu->base.index = index;
    cpu->self = cpu;
    cpu->engine = engine;
    cpu->mem = engine->mem;
    engine->vcpus[index] = cpu;
    int result = vcpu_init(cpu, err);
    if (result) {
        jit_vcpu_free(&cpu->base);
        return err_ctx(err, "vCPU %u", index);
    }
    *ret_vcpu = &cpu->base;
    return 0;
}

/* MSRs that are part of the state, by index. */
static const uint32_t state_msrs[] = {
    MSR_STAR,         MSR_LSTAR,        MSR_CSTAR,    MSR_SFMASK,          MSR_KERNEL_GS_BASE,       MSR_TSC_AUX,
    MSR_SYSENTER_CS,  MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, MSR_PAT,         MSR_MISC_ENABLE,          MSR_MTRR_DEF_TYPE,
    MSR_TSC,          MSR_TSC_ADJUST,   MSR_TSC_DEADLINE, MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW,
};

static void jit_get_state(struct vcpu *vcpu, struct x86_state *s)
{
    struct jit_vcpu *cpu = (struct jit_vcpu *)vcpu;
    run_take_init_and_sipi(cpu); /* the state has no place for what is pending of these */
    memset(s, 0, sizeof *s);
    memcpy(s->gpr, cpu->gpr, sizeof s->gpr);
    s->rip = cpu->rip;
    s->rflags = cpu->rflags;
    s->cr0 = cpu->cr0;
    s->cr2 = cpu->cr2;
    s->cr3 = cpu->cr3;
    s->cr4 = cpu->cr4;
    s->cr8 = lapic_get_cr8(cpu);
    s->xcr0 = cpu->xcr0;
    memcpy(s->dr, cpu->dr, sizeof s->dr);
    s->dr6 = cpu->dr6;
    s->dr7 = cpu->dr7;
    memcpy(s->segment, cpu->seg, sizeof s->segment);
    s->tr = cpu->tr;
    s->ldtr = cpu->ldtr;
    s->gdtr = cpu->gdtr;
    s->idtr = cpu->idtr;
    s->efer = cpu->efer;
    s->apic_base = cpu->lapic.apic_base;
    for (unsigned i = 0; i < sizeof state_msrs / sizeof *state_msrs; i++) {
        if (_setjmp(cpu->unwind))
            continue;
        s->msrs[s->msr_count] = (struct x86_msr){state_msrs[i], system_read_msr(cpu, state_msrs[i])};
        s->msr_count++;
    }
    lapic_save(cpu, s->lapic);
    s->run_state = cpu->halted ? X86_HALTED : cpu->run_state;
    s->nmi_pending = cpu->nmi_pending;
    s->nmi_blocked = cpu->nmi_blocked;
    s->interrupt_shadow = cpu->interrupt_shadow;
    memcpy(s->xsave, cpu->xsave, sizeof s->xsave);
    memset(s->xsave + XSAVE_X87_POINTERS, 0, XSAVE_X87_POINTERS_END - XSAVE_X87_POINTERS);
}

static void load_msr(struct jit_vcpu *cpu, const struct x86_msr *msr)
{
    if (_setjmp(cpu->unwind))
        log_debug("jit: MSR 0x%x cannot be loaded", msr->index);
    else
        system_load_msr(cpu, msr->index, msr->value);
}

/* What the host's XRSTOR would refuse is cleared: the header's other bits, MXCSR's reserved ones. */
static void load_xsave(struct jit_vcpu *cpu, const uint8_t *xsave)
{
    memcpy(cpu->xsave, xsave, sizeof cpu->xsave);
    store_le32(cpu->xsave + XSAVE_MXCSR, load_le32(xsave + XSAVE_MXCSR) & 0xffff);
    memset(cpu->xsave + XSAVE_HEADER, 0, 64);
    store_le64(cpu->xsave + XSAVE_HEADER, load_le64(xsave + XSAVE_HEADER) & (XCR0_X87 | XCR0_SSE | XCR0_AVX));
}

static int jit_set_state(struct vcpu *vcpu, const struct x86_state *s, struct err *err)
{
    (void)err;
    struct jit_vcpu *cpu = (struct jit_vcpu *)vcpu;
    system_reset(cpu, true);
    memcpy(cpu->gpr, s->gpr, sizeof s->gpr);
    cpu->rip = s->rip;
    cpu->rflags = s->rflags | 2;
    cpu->cr0 = s->cr0;
    cpu->cr2 = s->cr2;
    cpu->cr3 = s->cr3;
    cpu->cr4 = s->cr4;
    cpu->xcr0 = s->xcr0 ? s->xcr0 : XCR0_X87;
    memcpy(cpu->dr, s->dr, sizeof s->dr);
    cpu->dr6 = s->dr6;
    cpu->dr7 = s->dr7;
    memcpy(cpu->seg, s->segment, sizeof s->segment);
    cpu->tr = s->tr;
    cpu->ldtr = s->ldtr;
    cpu->gdtr = s->gdtr;
    cpu->idtr = s->idtr;
    cpu->efer = s->efer;
    cpu->cpl = (uint8_t)(SEG_ATTR_DPL(s->segment[SEG_SS].attributes));
    vcpu_update_mode(cpu);
    lapic_load(cpu, s->lapic);
    cpu->lapic.apic_base = s->apic_base;
    for (unsigned i = 0; i < s->msr_count; i++)
        load_msr(cpu, &s->msrs[i]);
    lapic_set_cr8(cpu, s->cr8);
    cpu->halted = s->run_state == X86_HALTED;
    cpu->run_state = cpu->halted ? X86_RUNNABLE : s->run_state;
    cpu->nmi_pending = s->nmi_pending;
    cpu->nmi_blocked = s->nmi_blocked;
    cpu->interrupt_shadow = s->interrupt_shadow;
    cpu->debug_shadow = false;
    cpu->debug_pending = 0;
    cpu->shutdown = false;
    load_xsave(cpu, s->xsave);
    mmu_flush_all(cpu);
    return 0;
}

static void jit_send_msi(struct engine *engine, struct msi msi)
{
    lapic_deliver_msi((struct jit_engine *)engine, msi);
}

static int jit_ioeventfd(struct engine *engine, uint64_t gpa, unsigned size, int fd, bool add)
{
    (void)engine, (void)gpa, (void)size, (void)fd, (void)add;
    return -ENOTSUP;
}

/* The instructions that left translated code most often. */
static void print_interpreted(const struct translator *tr, unsigned index, int fd)
{
    uint32_t counts[2048];
    memcpy(counts, tr->by_mnemonic, sizeof counts);
    for (unsigned n = 0; n < 24; n++) {
        unsigned most = 0;
        for (unsigned m = 1; m < 2048; m++)
            most = counts[m] > counts[most] ? m : most;
        if (!counts[most])
            return;
        dprintf(fd, "vcpu%u interpreted %s %u\n", index, ZydisMnemonicGetString((ZydisMnemonic)most), counts[most]);
        counts[most] = 0;
    }
}

static void jit_print_stats(struct engine *base, int fd)
{
    struct jit_engine *engine = (struct jit_engine *)base;
    for (unsigned i = 0; i < engine->vcpu_count; i++) {
        const struct jit_vcpu *cpu = engine->vcpus[i];
        if (!cpu)
            continue;
        const struct translator *tr = cpu->translator;
        struct region used = cache_usage(tr);
        dprintf(fd,
                "vcpu%u blocks %lu insns %lu code_kib %u cold_kib %u resets %lu misses %lu interp %lu jumps %lu followed %lu links %lu "
                "dropped %lu runs across pages %lu stepped %lu\n",
                i, tr->stat_blocks, tr->stat_insns, used.hot >> 10, used.cold >> 10, tr->stat_resets, tr->stat_misses, tr->stat_interp,
                tr->stat_jumps, tr->stat_followed, tr->stat_links, tr->stat_dead, tr->stat_runs, cpu->instructions);
        dprintf(fd, "vcpu%u tables: blocks %u sites %u maps %u links %u insns %u regions %u of %u\n", i, used.end_block, used.sites,
                used.maps, used.links, tr->insns.count, tr->regions_used, tr->region_count);
        dprintf(fd, "vcpu%u evictions %lu us %lu longest_us %lu, made again %lu\n", i, tr->stat_evictions,
                tr->stat_eviction_ns / 1000, tr->stat_longest_eviction_ns / 1000, tr->stat_again);
        const struct jump_cache *jumps = &cpu->jump_cache;
        dprintf(fd, "vcpu%u flushes: local %lu all %lu page %lu, with all jumps %lu\n", i, jumps->stat_flush_local,
                jumps->stat_flush_all, jumps->stat_flush_page, jumps->stat_flush_page_jumps);
        if (cpu->profile.on)
            profile_print(cpu, i, fd);
        print_interpreted(tr, i, fd);
    }
}

const struct engine_class engine_jit = {
    .name = "jit",
    .probe = jit_probe,
    .create = jit_create,
    .free = jit_free,
    .vcpu_create = jit_vcpu_create,
    .vcpu_free = jit_vcpu_free,
    .vcpu_run = run_vcpu,
    .vcpu_kick = run_kick,
    .vcpu_get_state = jit_get_state,
    .vcpu_set_state = jit_set_state,
    .send_msi = jit_send_msi,
    .ioeventfd = jit_ioeventfd,
    .print_stats = jit_print_stats,
};
