/* Decoding by what is known: instructions that differ in displacement and immediate alone are decoded in full once. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "cpu/jit/decode.h"

#define INSN_KNOWN_BITS 12

struct known_insn {
    uint64_t head; /* 0: none */
    bool imm_signed;
    struct insn insn;
};

/* Starts as zeroes. */
struct insn_known {
    bool remembers;
    struct known_insn slots[1u << INSN_KNOWN_BITS];
};

/* What insn_decode() says of 64-bit code, which may change meanwhile. */
enum insn_status insn_known_decode(struct insn_known *known, const uint8_t *from, unsigned length, struct insn *ret_insn);
