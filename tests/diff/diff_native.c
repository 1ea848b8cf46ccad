/* The bare CPU's side: a child process that maps code and data at the guest's linear addresses, loads the whole register state, jumps, and
 * takes the state at the fault that ends every sequence from the signal frame. */
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>
#include <x86intrin.h>

#include "base/bytes.h"
#include "cpu/x86.h"
#include "diff.h"

/* Linux's selectors. */
#define USER_CODE32 0x23
#define USER_DATA 0x2b
#define USER_CODE64 0x33
/* Entries 0 and 1 of the child's LDT. */
#define LDT_CODE16 0x07
#define LDT_DATA16 0x0f

struct diff_native {
    struct diff_batch *batch;
    pid_t pid;
    int to_child, from_child;
};

/* What the entry code and the handler share. */
struct native_run {
    uint64_t gpr[16], rip, rflags, fs_base, gs_base;
    uint64_t host_rsp, host_fs, host_gs;
    const uint8_t *xsave;
    struct diff_result *result;
    uint32_t far_offset; /* of the first instruction, with its code segment */
    uint16_t far_selector;
    uint16_t data_selector, stack_selector;
    uint32_t fsgsbase; /* the kernel keeps bases that instructions set; else only those of arch_prctl */
};
extern struct native_run native_run;
struct native_run native_run __attribute__((used));
static unsigned *progress; /* index of the running case, in shared memory */

void native_enter(void);
extern const char native_resume[];

/* Loads everything from native_run and jumps; native_resume returns to the caller. */
__asm__(".text\n"
        ".globl native_enter, native_resume\n"
        "native_enter:\n"
        "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "lea native_run(%rip), %rbx\n"
        "mov %rsp, 160(%rbx)\n"
        "mov 184(%rbx), %rcx\n"
        "mov $7, %eax\n xor %edx, %edx\n"
        "xrstor64 (%rcx)\n"
        "movzwl 206(%rbx), %eax\n mov %eax, %ds\n mov %eax, %es\n mov %eax, %fs\n mov %eax, %gs\n"
        "movzwl 208(%rbx), %eax\n mov %eax, %ss\n"
        "cmpl $0, 212(%rbx)\n je 1f\n"
        "mov 144(%rbx), %rax\n wrfsbase %rax\n"
        "mov 152(%rbx), %rax\n wrgsbase %rax\n"
        "jmp 2f\n"
        "1: mov $158, %eax\n mov $0x1002, %edi\n mov 144(%rbx), %rsi\n syscall\n" /* arch_prctl(ARCH_SET_FS) */
        "mov $158, %eax\n mov $0x1001, %edi\n mov 152(%rbx), %rsi\n syscall\n"    /* arch_prctl(ARCH_SET_GS) */
        "2: push 136(%rbx)\n popfq\n"
        "mov 0(%rbx), %rax\n mov 8(%rbx), %rcx\n mov 16(%rbx), %rdx\n mov 32(%rbx), %rsp\n"
        "mov 40(%rbx), %rbp\n mov 48(%rbx), %rsi\n mov 56(%rbx), %rdi\n mov 64(%rbx), %r8\n"
        "mov 72(%rbx), %r9\n mov 80(%rbx), %r10\n mov 88(%rbx), %r11\n mov 96(%rbx), %r12\n"
        "mov 104(%rbx), %r13\n mov 112(%rbx), %r14\n mov 120(%rbx), %r15\n"
        "mov 24(%rbx), %rbx\n"
        "ljmpl *native_run+200(%rip)\n"
        "native_resume:\n"
        "mov native_run+160(%rip), %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
        "cld\n vzeroupper\n fninit\n"
        "ret\n");

static void take_result(const mcontext_t *context)
{
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    struct diff_result *result = native_run.result;
    for (unsigned i = 0; i < 16; i++)
        result->state.gpr[i] = (uint64_t)context->gregs[order[i]];
    result->state.rip = (uint64_t)context->gregs[REG_RIP];
    result->state.rflags = (uint64_t)context->gregs[REG_EFL];
    result->vector = (uint32_t)context->gregs[REG_TRAPNO];
    result->error = (uint32_t)context->gregs[REG_ERR];
    result->cr2 = (uint64_t)context->gregs[REG_CR2];
    memcpy(result->state.xsave, context->fpregs, DIFF_XSAVE);
}

/* FS and GS bases. No library call: TLS may be anywhere. */
static long arch_prctl(int code, uint64_t argument)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(SYS_arch_prctl), "D"(code), "S"(argument) : "rcx", "r11", "memory");
    return result;
}

static uint64_t get_base(int code)
{
    uint64_t base = 0;
    if (native_run.fsgsbase)
        return code == ARCH_GET_FS ? _readfsbase_u64() : _readgsbase_u64();
    arch_prctl(code, (uint64_t)(uintptr_t)&base);
    return base;
}

static void set_base(int code, uint64_t base)
{
    if (!native_run.fsgsbase)
        arch_prctl(code, base);
    else if (code == ARCH_SET_FS)
        _writefsbase_u64(base);
    else
        _writegsbase_u64(base);
}

static void on_signal(int signal, siginfo_t *info, void *ucontext)
{
    (void)signal, (void)info;
    /* The kernel leaves AC as it was. */
    __asm__ volatile("sub $128, %%rsp\n pushfq\n andl %0, (%%rsp)\n popfq\n add $128, %%rsp" : : "i"(~FLAG_AC) : "memory", "cc");
    uint64_t fs = get_base(ARCH_GET_FS), gs = get_base(ARCH_GET_GS);
    set_base(ARCH_SET_FS, native_run.host_fs);
    set_base(ARCH_SET_GS, native_run.host_gs);
    mcontext_t *context = &((ucontext_t *)ucontext)->uc_mcontext;
    take_result(context);
    native_run.result->state.fs_base = fs;
    native_run.result->state.gs_base = gs;
    context->gregs[REG_RIP] = (greg_t)(uintptr_t)native_resume;
    context->gregs[REG_RSP] = (greg_t)native_run.host_rsp; /* a kernel may refuse to return to one that is not canonical */
    context->gregs[REG_EFL] = 0x202;
    context->gregs[REG_CSGSFS] = (context->gregs[REG_CSGSFS] & INT64_C(0x0000ffffffff0000)) | USER_CODE64 |
                                 (greg_t)USER_DATA << 48;
    store_le32((uint8_t *)context->fpregs + 24, 0x1f80);
}

static int protection(enum diff_page page)
{
    return page == DIFF_HOLE ? PROT_NONE : page == DIFF_READ ? PROT_READ : PROT_READ | PROT_WRITE;
}

static void set_data_protection(bool open)
{
    for (unsigned i = 0; i < DIFF_DATA_PAGES; i++)
        if (diff_pages[i] == DIFF_READ)
            mprotect((void *)(uintptr_t)(DIFF_DATA + i * DIFF_PAGE), DIFF_PAGE,
                     open ? PROT_READ | PROT_WRITE : PROT_READ);
}

static void child_map(void)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE;
    if (mmap((void *)(uintptr_t)DIFF_CODE, DIFF_BATCH * DIFF_SLOT, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
        _exit(3);
    for (unsigned i = 0; i < DIFF_DATA_PAGES; i++)
        if (diff_pages[i] != DIFF_HOLE && mmap((void *)(uintptr_t)(DIFF_DATA + i * DIFF_PAGE), DIFF_PAGE,
                                               protection(diff_pages[i]), flags, -1, 0) == MAP_FAILED)
            _exit(3);
}

/* 16-bit segments; without modify_ldt such cases end the child. */
static void child_segments(void)
{
    struct user_desc code = {.entry_number = 0, .base_addr = (unsigned)DIFF_CODE, .limit = 0xffff,
                             .contents = MODIFY_LDT_CONTENTS_CODE, .useable = 1};
    struct user_desc data = {.entry_number = 1, .base_addr = (unsigned)DIFF_DATA, .limit = 0xffff, .useable = 1};
    syscall(SYS_modify_ldt, 0x11, &code, sizeof code);
    syscall(SYS_modify_ldt, 0x11, &data, sizeof data);
}

static void child_signals(void)
{
    static uint8_t stack[64 << 10];
    stack_t alt = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaltstack(&alt, NULL);
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
}

static void child_run(const struct diff_batch *batch, unsigned index, struct diff_result *result)
{
    const struct diff_state *state = &batch->cases[index].state;
    for (unsigned i = 0; i < DIFF_DATA_PAGES; i++)
        if (diff_pages[i] == DIFF_WRITE)
            memcpy((void *)(uintptr_t)(DIFF_DATA + i * DIFF_PAGE), batch->data[i], DIFF_PAGE);
    memcpy(native_run.gpr, state->gpr, sizeof state->gpr);
    native_run.rip = state->rip;
    native_run.rflags = state->rflags;
    native_run.fs_base = state->fs_base;
    native_run.gs_base = state->gs_base;
    native_run.xsave = state->xsave;
    native_run.result = result;
    native_run.far_offset = (uint32_t)state->rip;
    unsigned bits = batch->cases[index].bits;
    native_run.far_selector = bits == 64 ? USER_CODE64 : bits == 32 ? USER_CODE32 : LDT_CODE16;
    native_run.data_selector = bits == 64 ? 0 : bits == 32 ? USER_DATA : LDT_DATA16;
    native_run.stack_selector = bits == 16 ? LDT_DATA16 : USER_DATA;
    native_enter();
    for (unsigned i = 0; i < DIFF_DATA_PAGES; i++)
        if (diff_pages[i] != DIFF_HOLE)
            memcpy(result->data[i], (void *)(uintptr_t)(DIFF_DATA + i * DIFF_PAGE), DIFF_PAGE);
}

static void child_run_batch(struct diff_batch *batch)
{
    uint8_t *code = (uint8_t *)(uintptr_t)DIFF_CODE;
    mprotect(code, DIFF_BATCH * DIFF_SLOT, PROT_READ | PROT_WRITE);
    for (unsigned i = 0; i < batch->count; i++)
        memcpy((void *)(uintptr_t)diff_code_linear(&batch->cases[i]), batch->cases[i].code, DIFF_SLOT);
    mprotect(code, DIFF_BATCH * DIFF_SLOT, PROT_READ | PROT_EXEC);
    set_data_protection(true);
    for (unsigned i = 0; i < DIFF_DATA_PAGES; i++)
        if (diff_pages[i] != DIFF_HOLE)
            memcpy((void *)(uintptr_t)(DIFF_DATA + i * DIFF_PAGE), batch->data[i], DIFF_PAGE);
    set_data_protection(false);
    for (unsigned i = 0; i < batch->count; i++) {
        *progress = i;
        child_run(batch, i, &batch->results[i]);
    }
}

static _Noreturn void child_main(struct diff_batch *batch, int in, int out)
{
    uint8_t byte;
    child_map();
    child_segments();
    child_signals();
    native_run.fsgsbase = getauxval(AT_HWCAP2) >> 1 & 1;
    native_run.host_fs = get_base(ARCH_GET_FS);
    native_run.host_gs = get_base(ARCH_GET_GS);
    while (read(in, &byte, 1) == 1) {
        alarm(20);
        child_run_batch(batch);
        if (write(out, &byte, 1) != 1)
            break;
    }
    _exit(0);
}

static int child_start(struct diff_native *native)
{
    int in[2], out[2];
    if (pipe(in) || pipe(out))
        return -1;
    native->pid = fork();
    if (native->pid < 0)
        return -1;
    if (native->pid == 0) {
        close(in[1]);
        close(out[0]);
        child_main(native->batch, in[0], out[1]);
    }
    close(in[0]);
    close(out[1]);
    native->to_child = in[1];
    native->from_child = out[0];
    return 0;
}

static void child_end(struct diff_native *native)
{
    close(native->to_child);
    close(native->from_child);
    waitpid(native->pid, NULL, 0);
}

struct diff_native *diff_native_start(struct diff_batch *shared)
{
    struct diff_native *native = calloc(1, sizeof *native);
    if (!native)
        return NULL;
    progress = mmap(NULL, DIFF_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    native->batch = shared;
    if (progress == MAP_FAILED || child_start(native)) {
        free(native);
        return NULL;
    }
    return native;
}

int diff_native_run(struct diff_native *native, unsigned *ret_case)
{
    uint8_t byte = 0;
    if (write(native->to_child, &byte, 1) == 1 && read(native->from_child, &byte, 1) == 1)
        return 0;
    *ret_case = *progress;
    child_end(native);
    child_start(native);
    return -1;
}

void diff_native_stop(struct diff_native *native)
{
    if (!native)
        return;
    child_end(native);
    free(native);
}
