#include "polder/progress.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "polder/text.h"

#define BAR 24

void progress_begin(struct progress *progress, bool quiet)
{
    *progress = (struct progress){.quiet = quiet, .terminal = isatty(STDERR_FILENO)};
}

static void clear(struct progress *progress)
{
    for (; progress->drawn; progress->drawn--)
        fputs("\033[1A\033[2K", stderr);
    fputc('\r', stderr);
}

static void line_text(const struct progress_line *line, char *text, size_t size)
{
    char done[TEXT_SHORT], total[TEXT_SHORT], bar[BAR + 1] = "";
    bool bytes = line->total > 999 || line->done > 999; /* else it counts steps */
    text_size(done, line->done);
    text_size(total, line->total);
    if (!line->total && line->done && bytes)
        snprintf(text, size, "%-40s %s", line->what, done);
    else if (!line->total)
        snprintf(text, size, "%s", line->what);
    else {
        unsigned full = (unsigned)((double)line->done / (double)line->total * BAR);
        full = full > BAR ? BAR : full;
        memset(bar, '=', full);
        memset(bar + full, ' ', BAR - full);
        if (full && full < BAR)
            bar[full - 1] = '>';
        if (bytes)
            snprintf(text, size, "%-40s [%s] %s of %s", line->what, bar, done, total);
        else
            snprintf(text, size, "%-40s [%s] %llu of %llu", line->what, bar, (unsigned long long)line->done,
                     (unsigned long long)line->total);
    }
}

static void draw(struct progress *progress)
{
    struct winsize size;
    unsigned columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
    clear(progress);
    for (unsigned i = 0; i < progress->count; i++) {
        char text[256];
        line_text(&progress->lines[i], text, sizeof text);
        text_cut(text, sizeof text, columns - 1);
        fprintf(stderr, "%s\n", text);
        progress->drawn++;
    }
    fflush(stderr);
}

/* The line named `what`; when all are taken, the oldest makes room. */
static struct progress_line *find_line(struct progress *progress, const char *what)
{
    for (unsigned i = 0; i < progress->count; i++)
        if (strcmp(progress->lines[i].what, what) == 0)
            return &progress->lines[i];
    if (progress->count == PROGRESS_LINES)
        memmove(progress->lines, progress->lines + 1, --progress->count * sizeof *progress->lines);
    struct progress_line *line = &progress->lines[progress->count++];
    *line = (struct progress_line){0};
    snprintf(line->what, sizeof line->what, "%s", what);
    if (!progress->terminal)
        fprintf(stderr, "%s\n", line->what);
    return line;
}

void progress_show(struct progress *progress, const char *what, uint64_t done, uint64_t total)
{
    char clean[sizeof progress->lines->what];
    text_clean(clean, sizeof clean, what, "");
    if (progress->quiet || !*clean)
        return;
    struct progress_line *line = find_line(progress, clean);
    line->done = done;
    line->total = total;
    if (progress->terminal)
        draw(progress);
}

void progress_end(struct progress *progress)
{
    if (progress->quiet || !progress->terminal)
        return;
    clear(progress);
    fflush(stderr);
}
