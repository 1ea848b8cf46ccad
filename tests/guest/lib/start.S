/* Entry points: the bootstrap processor from PVH (32-bit, no paging), application processors from SIPI (16-bit); both go to
 * 64-bit mode on identity-mapped tables. Then the exception stubs, and the jumps between contexts. */
#define SEL_CODE 0x08
#define SEL_DATA 0x10
#define SEL_CODE32 0x18
#define AP_START 0x8000

    .section .note.pvh, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_start

    .section .text.start, "ax"
    .code32
    .globl pvh_start
pvh_start:
    cld
    mov %ebx, pvh_info
    lgdt boot_gdt_pointer
    mov $bsp_stack_top, %esp
    mov $bsp_start64, %edi
/* Long mode from flat 32-bit code; edi: where to go on. */
enter_long_mode:
    mov $0x6b0, %eax            /* PAE, PGE, OSFXSR, OSXMMEXCPT, PSE */
    mov %eax, %cr4
    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx       /* EFER: SCE, LME, NXE */
    rdmsr
    or $0x901, %eax
    wrmsr
    mov $0x80010033, %eax       /* PG, WP, NE, ET, MP, PE */
    mov %eax, %cr0
    ljmp $SEL_CODE, $long_mode
    .code64
long_mode:
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov %edi, %edi
    jmp *%rdi

bsp_start64:
    mov $bsp_stack_top, %esp
    xor %ebp, %ebp
    call guest_start
1:  hlt
    jmp 1b

ap_start64:
    mov ap_stack, %rsp
    xor %ebp, %ebp
    call guest_ap_start
1:  hlt
    jmp 1b

/* Copied to AP_START; real mode with cs = AP_START / 16. */
    .code16
    .globl ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl AP_START + (ap_gdt_pointer - ap_trampoline)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $SEL_CODE32, $(AP_START + ap_protected - ap_trampoline)
    .code32
ap_protected:
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %ss
    mov $ap_start64, %edi
    mov $enter_long_mode, %eax
    jmp *%eax
    .align 4
ap_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
ap_trampoline_end:

    .align 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 64-bit code */
    .quad 0x00cf93000000ffff    /* data */
    .quad 0x00cf9b000000ffff    /* 32-bit code */
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt

    .data
    .align 4096
boot_pml4:
    .quad boot_pdpt + 7, boot_pdpt_user + 7
    .fill 510, 8, 0
boot_pdpt:
    .quad boot_pd + 7, boot_pd + 0x1007, boot_pd + 0x2007, boot_pd + 0x3007
    .fill 508, 8, 0
boot_pdpt_user:
    .quad boot_pd_user + 7
    .fill 511, 8, 0
/* 4 GiB in 2 MiB pages for the supervisor; the first GiB again at USER_ALIAS for user mode. */
boot_pd:
    .set i, 0
    .rept 2048
    .quad (i << 21) + 0x83
    .set i, i + 1
    .endr
boot_pd_user:
    .set i, 0
    .rept 512
    .quad (i << 21) + 0x87
    .set i, i + 1
    .endr
    .globl pvh_info, ap_stack, boot_pml4
pvh_info:
    .quad 0
ap_stack:
    .quad 0
    .bss
    .align 4096
    .skip 16384
    .globl bsp_stack_top
bsp_stack_top:

/* ---- exceptions ---- */
    .text
    .code64
    .globl trap_stubs
    .align 16
trap_stubs:
    .set vector, 0
    .rept 256
    .align 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    push $0
    .endif
    push $vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    push %r15
    push %r14
    push %r13
    push %r12
    push %r11
    push %r10
    push %r9
    push %r8
    push %rdi
    push %rsi
    push %rbp
    push %rbx
    push %rdx
    push %rcx
    push %rax
    mov %rsp, %rdi
    mov %rsp, %rbp
    and $-16, %rsp
    cld
    call trap_dispatch
    mov %rbp, %rsp
    pop %rax
    pop %rcx
    pop %rdx
    pop %rbx
    pop %rbp
    pop %rsi
    pop %rdi
    pop %r8
    pop %r9
    pop %r10
    pop %r11
    pop %r12
    pop %r13
    pop %r14
    pop %r15
    add $16, %rsp
    iretq

/* int context_save(struct context *): 0 now, 1 when context_restore comes back here. */
    .globl context_save, context_restore
context_save:
    mov (%rsp), %rax
    mov %rax, 0(%rdi)
    lea 8(%rsp), %rax
    mov %rax, 8(%rdi)
    mov %rbx, 16(%rdi)
    mov %rbp, 24(%rdi)
    mov %r12, 32(%rdi)
    mov %r13, 40(%rdi)
    mov %r14, 48(%rdi)
    mov %r15, 56(%rdi)
    pushfq
    pop %rax
    mov %rax, 64(%rdi)
    xor %eax, %eax
    ret
context_restore:
    mov $0x10, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    mov 8(%rdi), %rsp
    mov 16(%rdi), %rbx
    mov 24(%rdi), %rbp
    mov 32(%rdi), %r12
    mov 40(%rdi), %r13
    mov 48(%rdi), %r14
    mov 56(%rdi), %r15
    pushq 64(%rdi)
    popfq
    mov $1, %eax
    jmp *0(%rdi)

/* void enter_user(rip, rsp, rflags, cs, arg): iretq to ring 3, arg in rdi. */
    .globl enter_user
enter_user:
    push $0x2b
    push %rsi
    push %rdx
    push %rcx
    push %rdi
    mov %r8, %rdi
    xor %eax, %eax
    xor %ecx, %ecx
    iretq

    .section .note.GNU-stack, "", @progbits
