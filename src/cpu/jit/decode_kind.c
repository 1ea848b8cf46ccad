/* What kind of instruction it is, and which FPU state it needs. Anything that no named CPU model can have is illegal;
 * anything that must not run with host privileges or on host state as it stands goes to the interpreter. */
#include "cpu/jit/decode_impl.h"

static bool extension_supported(ZydisISAExt ext)
{
    switch ((unsigned)ext) {
    case ZYDIS_ISA_EXT_ADOX_ADCX:
    case ZYDIS_ISA_EXT_AES:
    case ZYDIS_ISA_EXT_AMD3DNOW_PREFETCH:
    case ZYDIS_ISA_EXT_AVX:
    case ZYDIS_ISA_EXT_AVX2:
    case ZYDIS_ISA_EXT_AVX2GATHER:
    case ZYDIS_ISA_EXT_AVXAES:
    case ZYDIS_ISA_EXT_AVX_VNNI:
    case ZYDIS_ISA_EXT_BASE:
    case ZYDIS_ISA_EXT_BMI1:
    case ZYDIS_ISA_EXT_BMI2:
    case ZYDIS_ISA_EXT_CLFLUSHOPT:
    case ZYDIS_ISA_EXT_CLFSH:
    case ZYDIS_ISA_EXT_CLWB:
    case ZYDIS_ISA_EXT_F16C:
    case ZYDIS_ISA_EXT_FMA:
    case ZYDIS_ISA_EXT_GFNI:
    case ZYDIS_ISA_EXT_INVPCID:
    case ZYDIS_ISA_EXT_LONGMODE:
    case ZYDIS_ISA_EXT_LZCNT:
    case ZYDIS_ISA_EXT_MMX:
    case ZYDIS_ISA_EXT_MOVBE:
    case ZYDIS_ISA_EXT_PAUSE:
    case ZYDIS_ISA_EXT_PCLMULQDQ:
    case ZYDIS_ISA_EXT_PREFETCHWT1:
    case ZYDIS_ISA_EXT_RDPID:
    case ZYDIS_ISA_EXT_RDRAND:
    case ZYDIS_ISA_EXT_RDSEED:
    case ZYDIS_ISA_EXT_RDTSCP:
    case ZYDIS_ISA_EXT_RDWRFSGS:
    case ZYDIS_ISA_EXT_SERIALIZE:
    case ZYDIS_ISA_EXT_SHA:
    case ZYDIS_ISA_EXT_SMAP:
    case ZYDIS_ISA_EXT_SSE:
    case ZYDIS_ISA_EXT_SSE2:
    case ZYDIS_ISA_EXT_SSE3:
    case ZYDIS_ISA_EXT_SSE4:
    case ZYDIS_ISA_EXT_SSSE3:
    case ZYDIS_ISA_EXT_VAES:
    case ZYDIS_ISA_EXT_VPCLMULQDQ:
    case ZYDIS_ISA_EXT_X87:
    case ZYDIS_ISA_EXT_XSAVE:
    case ZYDIS_ISA_EXT_XSAVEC:
    case ZYDIS_ISA_EXT_XSAVEOPT:
    case ZYDIS_ISA_EXT_XSAVES: return true;
    default: return false;
    }
}

static bool is_legal(const struct decode_input *in, const struct insn *insn)
{
    const ZydisDecodedInstruction *zydis = &in->zydis;
    if (zydis->mnemonic == ZYDIS_MNEMONIC_VMCALL || zydis->mnemonic == ZYDIS_MNEMONIC_VMMCALL)
        return true;
    if (zydis->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && zydis->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
        return false;
    switch ((unsigned)zydis->mnemonic) {
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_RSM: return false; /* outside of SMM */
    default: return insn->map != 0xff && extension_supported(zydis->meta.isa_ext);
    }
}

static bool uses_system_register(const struct decode_input *in)
{
    for (unsigned i = 0; i < in->zydis.operand_count_visible; i++) {
        if (in->operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch ((unsigned)ZydisRegisterGetClass(in->operands[i].reg.value)) {
        case ZYDIS_REGCLASS_SEGMENT:
        case ZYDIS_REGCLASS_CONTROL:
        case ZYDIS_REGCLASS_DEBUG:
        case ZYDIS_REGCLASS_TEST: return true;
        default: break;
        }
    }
    return false;
}

static bool is_system_mnemonic(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_SERIALIZE:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_INVPCID:
    case ZYDIS_MNEMONIC_XLAT:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
    case ZYDIS_MNEMONIC_BOUND:
    case ZYDIS_MNEMONIC_ARPL:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_STD:
    case ZYDIS_MNEMONIC_SALC:
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_LDS:
    case ZYDIS_MNEMONIC_LES:
    case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL: return true;
    default: return false;
    }
}

static bool is_stack_mnemonic(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ:
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_LEAVE: return true;
    default: return false;
    }
}

static enum insn_kind kind_by_category(const ZydisDecodedInstruction *zydis)
{
    bool near = zydis->meta.branch_type == ZYDIS_BRANCH_TYPE_SHORT ||
                zydis->meta.branch_type == ZYDIS_BRANCH_TYPE_NEAR;
    switch ((unsigned)zydis->meta.category) {
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_COND_BR: return near ? INSN_BRANCH : INSN_SYSTEM; /* far, iret */
    case ZYDIS_CATEGORY_STRINGOP:
    case ZYDIS_CATEGORY_IOSTRINGOP: return INSN_STRING;
    case ZYDIS_CATEGORY_NOP:
    case ZYDIS_CATEGORY_WIDENOP:
    case ZYDIS_CATEGORY_PREFETCH:
    case ZYDIS_CATEGORY_PREFETCHWT1:
    case ZYDIS_CATEGORY_CLDEMOTE: return INSN_NOP;
    case ZYDIS_CATEGORY_AVX2GATHER:
    case ZYDIS_CATEGORY_DECIMAL:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_IO:
    case ZYDIS_CATEGORY_RDWRFSGS:
    case ZYDIS_CATEGORY_SEGOP:
    case ZYDIS_CATEGORY_SMAP:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_XSAVE:
    case ZYDIS_CATEGORY_XSAVEOPT: return INSN_SYSTEM;
    default: return INSN_PLAIN;
    }
}

static enum insn_kind kind_of(const struct decode_input *in, const struct insn *insn)
{
    if (!is_legal(in, insn))
        return INSN_ILLEGAL;
    if (uses_system_register(in) || is_system_mnemonic(insn->mnemonic) || insn->mem_bit_string)
        return INSN_SYSTEM;
    /* 64-bit code would clear registers 8-15 too. */
    if (insn->code_bits != 64 && (insn->mnemonic == ZYDIS_MNEMONIC_VZEROALL || insn->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER))
        return INSN_SYSTEM;
    if (is_stack_mnemonic(insn->mnemonic))
        return INSN_STACK;
    return kind_by_category(&in->zydis);
}

struct register_use {
    bool mmx, vector;
};

static struct register_use find_register_use(const struct decode_input *in)
{
    struct register_use use = {0};
    for (unsigned i = 0; i < in->zydis.operand_count; i++) {
        if (in->operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY && in->operands[i].mem.type == ZYDIS_MEMOP_TYPE_VSIB)
            use.vector = true;
        if (in->operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        ZydisRegister reg = in->operands[i].reg.value;
        use.mmx |= reg >= ZYDIS_REGISTER_MM0 && reg <= ZYDIS_REGISTER_MM7;
        use.vector |= (reg >= ZYDIS_REGISTER_XMM0 && reg <= ZYDIS_REGISTER_YMM31) || reg == ZYDIS_REGISTER_MXCSR;
    }
    return use;
}

/* cvtss2si and the like need MXCSR even where no operand is a vector register. */
static bool converts_memory(const ZydisDecodedInstruction *zydis)
{
    return zydis->meta.category == ZYDIS_CATEGORY_CONVERT && zydis->meta.isa_ext != ZYDIS_ISA_EXT_BASE &&
           zydis->meta.isa_ext != ZYDIS_ISA_EXT_LONGMODE;
}

static enum insn_fpu fpu_of(const struct decode_input *in, const struct insn *insn)
{
    struct register_use use = find_register_use(in);
    bool escape = insn->map == 0 && !insn->vex_length && (insn->opcode & 0xf8) == 0xd8;
    if (escape || insn->mnemonic == ZYDIS_MNEMONIC_FWAIT)
        return INSN_FPU_X87;
    if (insn->mnemonic == ZYDIS_MNEMONIC_VZEROALL || insn->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER)
        return INSN_FPU_AVX;
    use.vector |= converts_memory(&in->zydis);
    if (insn->vex_length && use.vector)
        return INSN_FPU_AVX;
    if (use.mmx || insn->mnemonic == ZYDIS_MNEMONIC_EMMS)
        return INSN_FPU_MMX;
    return use.vector ? INSN_FPU_SSE : INSN_FPU_NONE;
}

void decode_classify(const struct decode_input *in, struct insn *insn)
{
    insn->kind = (uint8_t)kind_of(in, insn);
    insn->fpu = insn->kind == INSN_ILLEGAL ? INSN_FPU_NONE : (uint8_t)fpu_of(in, insn);
}
