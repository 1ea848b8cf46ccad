/* Decoding by what is known: instructions that differ in displacement and immediate alone are decoded in full once. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "cpu/jit/decode.h"

struct known_insn;

struct insn_known {
    struct known_insn *slots; /* NULL: nothing is remembered */
};

/* False when memory is lacking. */
bool insn_known_create(struct insn_known *known);
void insn_known_free(struct insn_known *known);
/* What insn_decode() says of 64-bit code, which may change meanwhile. */
enum insn_status insn_known_decode(struct insn_known *known, const uint8_t *from, unsigned length, struct insn *ret_insn);
