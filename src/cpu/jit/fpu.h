/* Guest x87/SSE/AVX state: in the host's registers while `fpu_live`, else in cpu->xsave (standard XSAVE format).
 * Files compiled without vector registers may run with it live; all other C code calls fpu_save() first. */
#pragma once

#include <stdint.h>

#include "cpu/jit/vcpu.h"

#define FPU_MASK (XCR0_X87 | XCR0_SSE | XCR0_AVX)

/* Sanitizers' run time uses vector registers wherever it likes: with one of them C code never runs with the guest's. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FPU_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define FPU_SANITIZED 1
#endif
#endif
#ifndef FPU_SANITIZED
#define FPU_SANITIZED 0
#endif

static inline void fpu_save(struct jit_vcpu *cpu)
{
    if (!cpu->fpu_live)
        return;
    static const uint32_t host_mxcsr = 0x1f80;
    /* No exception that the guest left pending may hit host code. */
    __asm__ volatile("xsave64 %0\n\tldmxcsr %1\n\tfninit"
                     : "+m"(*(uint8_t(*)[X86_XSAVE_SIZE])cpu->xsave)
                     : "m"(host_mxcsr), "a"(FPU_MASK), "d"(0));
    cpu->fpu_live = false;
}

static inline void fpu_load(struct jit_vcpu *cpu)
{
    if (cpu->fpu_live)
        return;
    __asm__ volatile("xrstor64 %0" : : "m"(*(uint8_t(*)[X86_XSAVE_SIZE])cpu->xsave), "a"(FPU_MASK), "d"(0) : "memory");
    cpu->fpu_live = true;
}

/* After vector registers were brought up to date in the host's: they stay there where they may. */
static inline void fpu_leave_live(struct jit_vcpu *cpu)
{
    if (FPU_SANITIZED)
        fpu_save(cpu);
}
