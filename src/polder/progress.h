/* Progress on standard error: bars that are drawn anew on a terminal, a line now and then elsewhere, nothing when quiet. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define PROGRESS_LINES 12 /* things under way that are shown at once */

struct progress {
    bool quiet, terminal;
    unsigned drawn; /* lines on the screen */
    unsigned count;
    struct progress_line {
        char what[64];
        uint64_t done, total; /* total 0: not known */
    } lines[PROGRESS_LINES];
};

void progress_begin(struct progress *progress, bool quiet);
/* `what` is foreign text and names the bar; `total` 0 when not known. */
void progress_show(struct progress *progress, const char *what, uint64_t done, uint64_t total);
/* Takes the bars away. */
void progress_end(struct progress *progress);
