/* Text for people: sizes, ages, and what came from the server made harmless for a terminal. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#define TEXT_SHORT 32

/* "1.5 GiB", at most four digits. */
void text_size(char text[TEXT_SHORT], uint64_t bytes);
/* "12 s", "5 min", "3 h", "2 days" */
void text_span(char text[TEXT_SHORT], int64_t seconds);
/* RFC 3339 with any offset, fractions dropped. False when it is not that. */
bool text_parse_time(const char *text, time_t *ret_time);

/* Copies with everything that a terminal could take for a command replaced by '?': C0 and C1 controls, DEL, marks that turn the
 * direction of text, and bytes that are not UTF-8. `keep` are controls that pass ("\n\t"). `size` at least 1; cut on a
 * character's border. Returns the length. */
size_t text_clean(char *out, size_t size, const char *in, const char *keep);
/* The same to a stream, of any length. */
void text_print(FILE *out, const char *in, const char *keep);
/* Columns that clean text takes on a terminal. */
unsigned text_width(const char *text);
/* Cuts clean text to `columns`, the last of them "…" (when the locale has it, else "~"). */
void text_cut(char *text, size_t size, unsigned columns);

/* Changes (insertion, deletion, exchange, swapped neighbours) that make `b` of `a`; at most 64 characters each. */
unsigned text_distance(const char *a, const char *b);
/* True when `candidate` is near enough to `word`, nearer than *best (start with UINT_MAX), which it then sets. */
bool text_is_near(const char *word, const char *candidate, unsigned *best);
