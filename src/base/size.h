/* Sizes as users write them: "512M", "1G", "4096", with binary suffixes K M G T (optionally followed by iB or B). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Parses the whole text into bytes; false when malformed or beyond 2^63-1. A plain number counts `unit` bytes. */
bool size_parse(const char *text, uint64_t unit, uint64_t *ret_bytes);
