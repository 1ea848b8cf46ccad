/* Host faults in translated code. Those that no guest can be the cause of end the process, which says so in one line: they are made
 * by an entry of the soft TLB that points to no memory. An instruction that the host's CPU does not know is the guest's
 * #UD: one is put into translated code. */
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "cpu/engine.h"
#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"
#include "mem/mem.h"

#define GPA_PML4 0x1000u
#define GPA_PDPT 0x2000u
#define GPA_CODE 0x4000u
#define DATA 0x5000u /* guest address of what the code reads, in the first GiB, which is mapped as it is */

static struct mem *mem;
static struct vcpu *vcpu;

static void put64(uint64_t gpa, uint64_t value)
{
    store_le64(mem_ptr(mem, gpa, 8), value);
}

/* A vCPU in long mode about to run: 1: mov rax, [rbx]; jmp 1b. */
static int boot(void)
{
    struct err err = {0};
    struct engine_config config = {.vcpus = 1, .cpu_model = "host"};
    struct engine *engine;
    if (mem_create(4 << 20, false, &mem, &err))
        return -1;
    config.mem = mem;
    if (engine_jit.create(&config, &engine, &err) || engine_jit.vcpu_create(engine, 0, &vcpu, &err))
        return -1;
    put64(GPA_PML4, GPA_PDPT | PTE_P | PTE_W);
    put64(GPA_PDPT, PTE_P | PTE_W | PTE_PS);
    memcpy(mem_ptr(mem, GPA_CODE, 5), "\x48\x8b\x03\xeb\xfb", 5);
    struct x86_state state;
    memset(&state, 0, sizeof state);
    x86_state_reset(&state, 0);
    state.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    state.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXSAVE;
    state.efer = EFER_LME | EFER_LMA;
    state.cr3 = GPA_PML4;
    state.xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
    state.segment[SEG_CS] = (struct x86_segment_state){0, UINT32_MAX, 8, 0xa09b};
    state.segment[SEG_SS] = (struct x86_segment_state){0, UINT32_MAX, 16, 0xc093};
    state.rip = GPA_CODE;
    state.rflags = 2;
    state.gpr[RBX] = DATA;
    return engine_jit.vcpu_set_state(vcpu, &state, &err);
}

/* In a child: its last words go to `to`. */
static _Noreturn void run_with_bad_entry(int to, uint8_t *host)
{
    static const struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    dup2(to, STDERR_FILENO);
    signal(SIGSEGV, SIG_DFL); /* cmocka has its own */
    signal(SIGBUS, SIG_DFL);
    if (boot())
        _exit(2);
    struct jit_vcpu *cpu = (struct jit_vcpu *)vcpu;
    cpu->tlb.entries[TLB_SUPER][TLB_READ][DATA / MEM_PAGE_SIZE] = (struct tlb_entry){.tag = DATA, .host = host};
    alarm(20);
    engine_jit.vcpu_run(vcpu);
    _exit(3);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
    engine_jit.vcpu_kick(vcpu);
}

/* Runs the loop for a moment, so that it is translated. */
static enum vcpu_exit run_for_a_moment(void)
{
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK};
    struct itimerval moment = {.it_value = {.tv_usec = 50000}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &moment, NULL);
    return engine_jit.vcpu_run(vcpu);
}

/* mov rax, [r14 + r15], which the guest's load became, turns into ud2; how many there were. */
static unsigned replace_loads(struct translator *tr)
{
    unsigned count = 0;
    for (uint8_t *at = tr->regions_start; at + 4 <= tr->hot; at++)
        if (!memcmp(at, "\x4b\x8b\x04\x3e", 4)) {
            memcpy(at, "\x0f\x0b\x90\x90", 4);
            count++;
        }
    return count;
}

/* There is no IDT: #UD becomes a triple fault, at the instruction. */
static _Noreturn void run_unknown_instruction(void)
{
    signal(SIGILL, SIG_DFL);
    if (boot() || run_for_a_moment() != VCPU_EXIT_KICKED)
        _exit(2);
    struct jit_vcpu *cpu = (struct jit_vcpu *)vcpu;
    if (replace_loads(cpu->translator) != 1)
        _exit(3);
    enum vcpu_exit exit = run_for_a_moment();
    _exit(exit == VCPU_EXIT_TRIPLE_FAULT && cpu->rip == GPA_CODE ? 0 : 4);
}

static void test_unknown_instruction(void **state)
{
    (void)state;
    int status = 0;
    pid_t child = fork();
    if (child == 0)
        run_unknown_instruction();
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static int crash(uint8_t *host, char *ret_words, size_t size)
{
    int ends[2], status = 0;
    assert_return_code(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0)
        run_with_bad_entry(ends[1], host);
    close(ends[1]);
    size_t got = 0;
    for (ssize_t n; got < size - 1 && (n = read(ends[0], ret_words + got, size - 1 - got)) > 0;)
        got += (size_t)n;
    ret_words[got] = '\0';
    close(ends[0]);
    waitpid(child, &status, 0);
    return status;
}

static void test_no_memory(void **state)
{
    (void)state;
    char words[512];
    uint8_t *hole = mmap(NULL, MEM_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int status = crash(hole, words, sizeof words);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSEGV);
    assert_non_null(strstr(words, "signal 11 at address 0x"));
    assert_non_null(strstr(words, "in translated code"));
    assert_non_null(strstr(words, "vCPU 0: a bug"));
    assert_ptr_equal(strchr(words, '\n'), words + strlen(words) - 1);
}

/* A mapping behind the end of its file, as memory that the host has lost. */
static void test_lost_memory(void **state)
{
    (void)state;
    char words[512];
    int fd = memfd_create("lost", MFD_CLOEXEC);
    uint8_t *lost = mmap(NULL, MEM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int status = crash(lost, words, sizeof words);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
    assert_non_null(strstr(words, "signal 7 at address 0x"));
    close(fd);
}

int main(void)
{
#ifdef __SANITIZE_THREAD__
    puts("SKIP: ThreadSanitizer holds back the signals that this test is about");
    return 77;
#endif
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_no_memory), cmocka_unit_test(test_lost_memory),
                                       cmocka_unit_test(test_unknown_instruction)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
