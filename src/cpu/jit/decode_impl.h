/* Parts of the decoder that look at Zydis's view of an instruction; private to decode*.c. */
#pragma once

#include <Zydis/Zydis.h>

#include "cpu/jit/decode.h"

struct decode_input {
    ZydisDecodedInstruction zydis;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
};

/* insn_decode(), which shows what Zydis said. */
enum insn_status insn_decode_into(const uint8_t *bytes, unsigned length, unsigned code_bits, struct decode_input *ret_in,
                                  struct insn *ret_insn);
/* Kind and FPU class; everything else in `insn` is filled already. */
void decode_classify(const struct decode_input *in, struct insn *insn);
/* flags_read, flags_write, flags_undefined. */
void decode_flags(const struct decode_input *in, struct insn *insn);
