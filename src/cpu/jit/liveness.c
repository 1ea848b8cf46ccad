/* Which arithmetic flags an instruction needs, and which code ahead needs. Decides where inline checks must keep flags.
 *
 * A flag is dead where all code ahead writes it before reading it, and a check may then leave anything in it. The frames of faults
 * and interrupts show that; what returns by such a frame cannot, and so breakpoints (int3 reads all flags), single steps
 * (interpreted) and a state that is saved and goes on elsewhere are exact. Keeping flags for the eye of a handler was
 * measured: at every access that may fault, loops with memory operands took 1.6 to 9 times as long, calls 1.3 times, the
 * boot of a Linux kernel 1.45 times; at block entries alone, for interrupts, the boot took 1.1 times. */
#include "cpu/jit/translate.h"

#define LOOK_AHEAD 10
#define PAGE_MASK ((uint64_t)4095)

/* Shifts and rotates by cl leave all flags alone when the count is 0. */
static bool is_shift_by_cl(const struct insn *insn)
{
    if (insn->vex_length)
        return false;
    return (insn->map == 0 && (insn->opcode & 0xfe) == 0xd2) ||
           (insn->map == 1 && (insn->opcode == 0xa5 || insn->opcode == 0xad));
}

static bool keeps_all(const struct insn *insn)
{
    return insn->kind == INSN_SYSTEM || insn->kind == INSN_STRING || insn->kind == INSN_ILLEGAL;
}

uint16_t liveness_kills(const struct insn *insn)
{
    if (keeps_all(insn) || is_shift_by_cl(insn))
        return 0;
    return (insn->flags_write | insn->flags_undefined) & FLAGS_ARITHMETIC;
}

uint16_t liveness_reads(const struct insn *insn)
{
    if (keeps_all(insn) || is_shift_by_cl(insn))
        return FLAGS_ARITHMETIC;
    if (insn->kind == INSN_STACK) /* pushf wants all; the others touch none */
        return insn->flags_read ? FLAGS_ARITHMETIC : 0;
    return insn->flags_read & (uint16_t)~insn->flags_undefined & FLAGS_ARITHMETIC;
}

void liveness_widen(struct code_span *span, unsigned start, unsigned end)
{
    if (start == end)
        return;
    bool empty = span->start == span->end;
    span->start = (uint16_t)(empty || start < span->start ? start : span->start);
    span->end = (uint16_t)(empty || end > span->end ? end : span->end);
}

uint16_t liveness_at(struct insn_known *known, uint64_t rip, uint64_t page_rip, const uint8_t *page, struct code_span *ret_span)
{
    uint16_t killed = 0, live = 0;
    *ret_span = (struct code_span){0};
    for (unsigned i = 0; i < LOOK_AHEAD; i++) {
        struct insn insn;
        unsigned offset = (unsigned)(rip & PAGE_MASK), room = 4096 - offset;
        if ((rip ^ page_rip) & ~PAGE_MASK)
            break;
        if (insn_known_decode(known, page + offset, room, &insn) != INSN_OK)
            break;
        liveness_widen(ret_span, offset, offset + insn.length);
        live |= liveness_reads(&insn) & (uint16_t)~killed;
        killed |= liveness_kills(&insn);
        if ((killed | live) == FLAGS_ARITHMETIC)
            return live;
        rip += insn.length;
        if (insn.kind == INSN_BRANCH) {
            bool direct = insn.map == 0 && (insn.opcode == 0xe9 || insn.opcode == 0xeb || insn.opcode == 0xe8);
            if (!direct)
                break;
            rip += (uint64_t)insn.imm;
        }
    }
    return live | (FLAGS_ARITHMETIC & (uint16_t)~killed);
}
