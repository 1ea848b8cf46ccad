/* A throw-away virtual machine of four pages that counts down in long mode and halts.
 *
 * The first run is short, as on an emulating host it takes as long as a millisecond a thousand instructions; only a fast
 * host runs the longer one, for a better figure. No interrupt controller: HLT then leaves to us. */
#include "cpu/kvm/calibrate.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/clock.h"
#include "base/own.h"
#include "cpu/x86.h"

enum { PML4_PAGE, PDPT_PAGE, DIRECTORY_PAGE, CODE_PAGE, PAGES };

#define PAGE 4096u
#define CODE (CODE_PAGE * PAGE)
#define SHORT_LOOPS 1000u
#define LONG_LOOPS 1000000u
#define FAST_PER_S UINT64_C(50000000)

struct probe {
    int kvm_fd, vm_fd, vcpu_fd;
    uint8_t *memory;
    struct kvm_run *run;
    size_t run_size;
};

static void probe_free(struct probe *p)
{
    if (p->run)
        munmap(p->run, p->run_size);
    const int fds[] = {p->vcpu_fd, p->vm_fd, p->kvm_fd};
    for (unsigned i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (p->memory)
        munmap(p->memory, (size_t)PAGES * PAGE);
}

static int probe_add_memory(struct probe *p, struct err *err)
{
    static const uint8_t code[] = {0x48, 0xff, 0xc9, /* dec rcx */
                                   0x75, 0xfb,       /* jnz to it */
                                   0xf4};            /* hlt */
    uint8_t *memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return err_set(err, errno, "memory");
    p->memory = memory;
    uint64_t entries[3] = {PDPT_PAGE * PAGE | PTE_P | PTE_W, DIRECTORY_PAGE * PAGE | PTE_P | PTE_W,
                           PTE_P | PTE_W | PTE_PS};
    for (unsigned i = 0; i < 3; i++)
        memcpy(memory + i * PAGE, &entries[i], sizeof entries[i]);
    memcpy(memory + CODE, code, sizeof code);
    struct kvm_userspace_memory_region region = {.memory_size = (uint64_t)PAGES * PAGE,
                                                 .userspace_addr = (uintptr_t)memory};
    if (ioctl(p->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        return err_set(err, errno, "KVM_SET_USER_MEMORY_REGION");
    return 0;
}

static int probe_open(struct probe *p, const char *device, struct err *err)
{
    p->kvm_fd = fdname_open(device ? device : "/dev/kvm", O_RDWR, 0);
    if (p->kvm_fd < 0)
        return err_set(err, errno, "open '%s'", device ? device : "/dev/kvm");
    p->vm_fd = ioctl(p->kvm_fd, KVM_CREATE_VM, 0);
    if (p->vm_fd < 0)
        return err_set(err, errno, "KVM_CREATE_VM");
    int r = probe_add_memory(p, err);
    if (r < 0)
        return r;
    p->vcpu_fd = ioctl(p->vm_fd, KVM_CREATE_VCPU, 0);
    int size = ioctl(p->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (p->vcpu_fd < 0 || size < (int)sizeof *p->run)
        return err_set(err, errno, "KVM_CREATE_VCPU");
    void *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, p->vcpu_fd, 0);
    if (run == MAP_FAILED)
        return err_set(err, errno, "KVM vCPU");
    p->run = run;
    p->run_size = (size_t)size;
    return 0;
}

static int probe_enter_long_mode(struct probe *p, struct err *err)
{
    struct kvm_sregs sregs;
    if (ioctl(p->vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
        return err_set(err, errno, "KVM_GET_SREGS");
    struct kvm_segment code = {.limit = UINT32_MAX, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = UINT32_MAX, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET;
    sregs.cr3 = PML4_PAGE * PAGE;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    if (ioctl(p->vcpu_fd, KVM_SET_SREGS, &sregs) < 0)
        return err_set(err, errno, "KVM_SET_SREGS");
    return 0;
}

static int probe_measure(struct probe *p, uint64_t loops, uint64_t *ret_per_s, struct err *err)
{
    struct kvm_regs regs = {.rip = CODE, .rflags = 2, .rcx = loops};
    if (ioctl(p->vcpu_fd, KVM_SET_REGS, &regs) < 0)
        return err_set(err, errno, "KVM_SET_REGS");
    uint64_t start = clock_now_ns();
    int r;
    do {
        r = ioctl(p->vcpu_fd, KVM_RUN, 0);
    } while (r < 0 && errno == EINTR);
    uint64_t took = clock_now_ns() - start;
    if (r < 0)
        return err_set(err, errno, "KVM_RUN");
    if (p->run->exit_reason != KVM_EXIT_HLT)
        return err_say(err, EIO, "/dev/kvm does not run long-mode code (exit %u)", p->run->exit_reason);
    *ret_per_s = 2 * loops * 1000000000u / (took ? took : 1);
    return 0;
}

int kvm_calibrate(const char *device, uint64_t *ret_instructions_per_s, struct err *err)
{
    struct probe p = {.kvm_fd = -1, .vm_fd = -1, .vcpu_fd = -1};
    int r = probe_open(&p, device, err);
    if (r == 0)
        r = probe_enter_long_mode(&p, err);
    if (r == 0)
        r = probe_measure(&p, SHORT_LOOPS, ret_instructions_per_s, err);
    if (r == 0 && *ret_instructions_per_s > FAST_PER_S)
        r = probe_measure(&p, LONG_LOOPS, ret_instructions_per_s, err);
    probe_free(&p);
    return r;
}
