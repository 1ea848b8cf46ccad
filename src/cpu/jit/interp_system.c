/* System instructions: decodes operands and calls the system room. Handlers by mnemonic; those here move rip by themselves only
 * where they say so. Source: Intel SDM 2. */
#include "cpu/jit/exec.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/interp_impl.h"
#include "cpu/jit/watch.h"

static void do_cpuid(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_cpuid(cpu);
}

/* The run loop looks at what other vCPUs ask for before it goes on. */
static void do_serialize(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)cpu;
    (void)insn;
}

static void do_rdtsc(struct jit_vcpu *cpu, const struct insn *insn)
{
    system_rdtsc(cpu, insn->mnemonic == ZYDIS_MNEMONIC_RDTSCP);
}

static void do_rdpid(struct jit_vcpu *cpu, const struct insn *insn)
{
    system_rdpid(cpu, insn->rm_gpr);
}

static void do_rdpmc(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_rdpmc(cpu);
}

static void do_rdmsr(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_rdmsr(cpu);
}

static void do_wrmsr(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_wrmsr(cpu);
}

static void do_xgetbv(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_xgetbv(cpu);
}

static void do_xsetbv(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_xsetbv(cpu);
}

static void do_swapgs(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_swapgs(cpu);
}

static void do_clts(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_clts(cpu);
}

static void do_interrupt_flag(struct jit_vcpu *cpu, const struct insn *insn)
{
    if (insn->mnemonic == ZYDIS_MNEMONIC_CLI)
        system_cli(cpu);
    else
        system_sti(cpu);
}

static void do_direction_flag(struct jit_vcpu *cpu, const struct insn *insn)
{
    set_flag(cpu, FLAG_DF, insn->mnemonic == ZYDIS_MNEMONIC_STD);
}

static void do_access_flag(struct jit_vcpu *cpu, const struct insn *insn)
{
    if (insn->mnemonic == ZYDIS_MNEMONIC_CLAC)
        system_clac(cpu);
    else
        system_stac(cpu);
}

static void do_hlt(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_hlt(cpu);
}

static void do_wbinvd(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_wbinvd(cpu);
}

static void do_vmcall(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    system_vmcall(cpu);
}

static void do_segment_base(struct jit_vcpu *cpu, const struct insn *insn)
{
    bool gs = insn->mnemonic == ZYDIS_MNEMONIC_RDGSBASE || insn->mnemonic == ZYDIS_MNEMONIC_WRGSBASE;
    bool write = insn->mnemonic == ZYDIS_MNEMONIC_WRFSBASE || insn->mnemonic == ZYDIS_MNEMONIC_WRGSBASE;
    unsigned bits = insn->rex & 8 ? 64 : 32; /* 66 means nothing here */
    if (write)
        system_wr_segment_base(cpu, gs, truncate_to(cpu->gpr[insn->rm_gpr], bits));
    else
        write_gpr(cpu, insn->rm_gpr, system_rd_segment_base(cpu, gs), bits);
}

static void require_cpl0(struct jit_vcpu *cpu)
{
    if (cpu->cpl)
        vcpu_raise(cpu, VEC_GP, 0);
}

/* A page that cannot be translated, or whose address is not canonical, is simply not in the TLB. */
static void do_invlpg(struct jit_vcpu *cpu, const struct insn *insn)
{
    require_cpl0(cpu);
    uint64_t linear = interp_offset(cpu, insn);
    bool based = cpu->mode != MODE_LONG || insn->mem_segment >= SEG_FS;
    if (based)
        linear += cpu->seg[insn->mem_segment].base;
    system_invlpg(cpu, cpu->mode == MODE_LONG ? linear : (uint32_t)linear);
}

static void do_invpcid(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint64_t descriptor[2];
    require_cpl0(cpu);
    mmu_read(cpu, interp_linear(cpu, insn, 16, ACCESS_READ), descriptor, 16,
             ACCESS_READ | stack_access(insn->mem_segment));
    uint64_t type = truncate_to(cpu->gpr[insn->reg_gpr], cpu->mode == MODE_LONG ? 64 : 32);
    system_invpcid(cpu, type, descriptor);
}

/* Caches are the host's affair; what remains is the access check of a one-byte read. */
static void do_cache_line(struct jit_vcpu *cpu, const struct insn *insn)
{
    mmu_page_ptr(cpu, interp_linear(cpu, insn, 1, ACCESS_READ), ACCESS_READ | stack_access(insn->mem_segment));
}

/* mov to and from control and debug registers: 0f 20..23; bit 1 of the opcode is the direction, bit 0 debug. */
static void mov_system_register(struct jit_vcpu *cpu, const struct insn *insn)
{
    unsigned index = insn_reg_number(insn);
    bool debug = insn->opcode & 1, write = insn->opcode & 2;
    unsigned bits = cpu->mode == MODE_LONG ? 64 : 32;
    uint64_t value = truncate_to(cpu->gpr[insn->rm_gpr], bits);
    if (debug && write)
        system_write_dr(cpu, index, value);
    else if (debug)
        write_gpr(cpu, insn->rm_gpr, system_read_dr(cpu, index), bits);
    else if (write)
        system_write_cr(cpu, index, value);
    else
        write_gpr(cpu, insn->rm_gpr, system_read_cr(cpu, index), bits);
}

static void do_mov(struct jit_vcpu *cpu, const struct insn *insn)
{
    if (insn->map == 1)
        mov_system_register(cpu, insn);
    else
        interp_mov_segment(cpu, insn);
}

static uint16_t io_port(const struct jit_vcpu *cpu, const struct insn *insn)
{
    return insn->opcode & 8 ? (uint16_t)cpu->gpr[RDX] : (uint16_t)insn->imm;
}

static unsigned io_size(const struct insn *insn)
{
    return insn->opcode & 1 ? (insn->operand_bits == 16 ? 2 : 4) : 1;
}

static void do_in(struct jit_vcpu *cpu, const struct insn *insn)
{
    unsigned size = io_size(insn);
    uint16_t port = io_port(cpu, insn);
    system_check_io(cpu, port, size);
    watch_port(cpu, port, size);
    fpu_save(cpu);
    uint64_t value = cpu->engine->machine.port_read(cpu->engine->machine.arg, port, size);
    write_gpr(cpu, RAX, value, size * 8);
}

static void do_out(struct jit_vcpu *cpu, const struct insn *insn)
{
    unsigned size = io_size(insn);
    uint16_t port = io_port(cpu, insn);
    system_check_io(cpu, port, size);
    watch_port(cpu, port, size);
    fpu_save(cpu);
    cpu->engine->machine.port_write(cpu->engine->machine.arg, port, truncate_to(cpu->gpr[RAX], size * 8), size);
}

/* Software interrupts are traps: rip is behind the instruction when they are delivered. A gate that forbids it, or faults, must
 * show rip at the instruction, which is delivery's affair. */
static void do_interrupt(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct jit_exception exception = {.software = true, .length = insn->length};
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_INT3: exception.vector = VEC_BP; break;
    case ZYDIS_MNEMONIC_INTO:
        if (!(cpu->rflags & FLAG_OF))
            return;
        exception.vector = VEC_OF;
        break;
    case ZYDIS_MNEMONIC_INT1:
        exception.vector = VEC_DB;
        exception.software = false;
        break;
    default: exception.vector = (uint8_t)insn->imm; break;
    }
    interp_retire(cpu, insn);
    vcpu_raise_exception(cpu, exception);
}

/* These set rip by themselves. */
static bool execute_transfer(struct jit_vcpu *cpu, const struct insn *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_SYSCALL: system_syscall(cpu, interp_next_rip(cpu, insn)); return true;
    case ZYDIS_MNEMONIC_SYSRET: system_sysret(cpu, insn->operand_bits); return true;
    case ZYDIS_MNEMONIC_SYSENTER: system_sysenter(cpu); return true;
    case ZYDIS_MNEMONIC_SYSEXIT: system_sysexit(cpu, insn->operand_bits); return true;
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ: segment_iret(cpu, insn->operand_bits); return true;
    case ZYDIS_MNEMONIC_RET: segment_far_return(cpu, insn->operand_bits, (uint16_t)insn->imm); return true;
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_CALL: interp_far_transfer(cpu, insn); return true;
    default: return false;
    }
}

static interp_fn *own_handler(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_CPUID: return do_cpuid;
    case ZYDIS_MNEMONIC_SERIALIZE: return do_serialize;
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP: return do_rdtsc;
    case ZYDIS_MNEMONIC_RDPID: return do_rdpid;
    case ZYDIS_MNEMONIC_RDPMC: return do_rdpmc;
    case ZYDIS_MNEMONIC_RDMSR: return do_rdmsr;
    case ZYDIS_MNEMONIC_WRMSR: return do_wrmsr;
    case ZYDIS_MNEMONIC_XGETBV: return do_xgetbv;
    case ZYDIS_MNEMONIC_XSETBV: return do_xsetbv;
    case ZYDIS_MNEMONIC_SWAPGS: return do_swapgs;
    case ZYDIS_MNEMONIC_CLTS: return do_clts;
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI: return do_interrupt_flag;
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_STD: return do_direction_flag;
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_STAC: return do_access_flag;
    case ZYDIS_MNEMONIC_HLT: return do_hlt;
    case ZYDIS_MNEMONIC_INVD:
    case ZYDIS_MNEMONIC_WBINVD: return do_wbinvd;
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL: return do_vmcall;
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE: return do_segment_base;
    case ZYDIS_MNEMONIC_INVLPG: return do_invlpg;
    case ZYDIS_MNEMONIC_INVPCID: return do_invpcid;
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB: return do_cache_line;
    case ZYDIS_MNEMONIC_MOV: return do_mov;
    case ZYDIS_MNEMONIC_IN: return do_in;
    case ZYDIS_MNEMONIC_OUT: return do_out;
    case ZYDIS_MNEMONIC_INT:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_INT3:
    case ZYDIS_MNEMONIC_INTO: return do_interrupt;
    default: return NULL;
    }
}

static interp_fn *find_handler(unsigned mnemonic)
{
    interp_fn *handler = own_handler(mnemonic);
    if (!handler)
        handler = interp_state_handler(mnemonic);
    if (!handler)
        handler = interp_segment_handler(mnemonic);
    if (!handler)
        handler = interp_vector_handler(mnemonic);
    return handler ? handler : interp_legacy_handler(mnemonic);
}

void interp_system(struct jit_vcpu *cpu, const struct insn *insn)
{
    if (execute_transfer(cpu, insn))
        return;
    interp_fn *handler = find_handler(insn->mnemonic);
    if (!handler)
        vcpu_raise(cpu, VEC_UD, 0);
    handler(cpu, insn);
    interp_retire(cpu, insn);
}
