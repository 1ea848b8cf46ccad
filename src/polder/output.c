/* Lists as tables that fit the terminal, as JSON, or as names; what came from the server is made harmless first. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "polder/cli.h"
#include "polder/text.h"

#define CELL_MAX 256
#define COLUMNS_MAX 16
#define GAP 3

/* ---- JSON ---- */

/* Controls that JSON leaves as they are (DEL, C1) must not reach a terminal either. */
static int print_json(const json_t *json)
{
    char *text = json_dumps(json, JSON_INDENT(2) | JSON_ENCODE_ANY);
    if (!text)
        return -ENOMEM;
    if (isatty(STDOUT_FILENO))
        text_print(stdout, text, "\n");
    else
        fputs(text, stdout);
    putchar('\n');
    free(text);
    return 0;
}

/* ---- cells ---- */

static void show_plain(const json_t *member, char *text, size_t size)
{
    if (json_is_string(member))
        snprintf(text, size, "%s", json_string_value(member));
    else if (json_is_integer(member))
        snprintf(text, size, "%lld", (long long)json_integer_value(member));
    else if (json_is_real(member))
        snprintf(text, size, "%.1f", json_real_value(member));
    else if (json_is_boolean(member))
        snprintf(text, size, "%s", json_is_true(member) ? "yes" : "no");
}

void cli_show_size(const json_t *document, const json_t *member, char *text, size_t size)
{
    char number[TEXT_SHORT];
    (void)document;
    if (!json_is_integer(member) || json_integer_value(member) < 0)
        return;
    text_size(number, (uint64_t)json_integer_value(member));
    snprintf(text, size, "%s", number);
}

void cli_show_age(const json_t *document, const json_t *member, char *text, size_t size)
{
    char span[TEXT_SHORT];
    time_t then;
    (void)document;
    if (!json_is_string(member) || !text_parse_time(json_string_value(member), &then))
        return;
    text_span(span, time(NULL) - then);
    snprintf(text, size, "%s", span);
}

void cli_show_time(const json_t *document, const json_t *member, char *text, size_t size)
{
    time_t then;
    struct tm tm;
    (void)document;
    if (!json_is_string(member) || !text_parse_time(json_string_value(member), &then) || !localtime_r(&then, &tm))
        return;
    if (!strftime(text, size, "%F %T", &tm))
        text[0] = '\0';
}

void cli_show_words(const json_t *document, const json_t *member, char *text, size_t size)
{
    size_t at, used = 0;
    json_t *item;
    (void)document;
    show_plain(member, text, size);
    json_array_foreach(member, at, item) {
        char one[CELL_MAX] = "";
        show_plain(item, one, sizeof one);
        used += (size_t)snprintf(text + used, size - used, "%s%s", used ? " " : "", one);
        if (used >= size)
            return;
    }
}

void cli_show_digest(const json_t *document, const json_t *member, char *text, size_t size)
{
    const char *digest = json_is_string(member) ? json_string_value(member) : "", *colon = strchr(digest, ':');
    (void)document;
    snprintf(text, size, "%.12s", colon ? colon + 1 : digest);
}

/* ---- tables ---- */

struct table {
    const struct cli_column *columns[COLUMNS_MAX];
    unsigned count, width[COLUMNS_MAX];
    size_t rows;
    char (*cells)[CELL_MAX]; /* rows x count; the first row is the titles */
};

static char *cell(const struct table *table, size_t row, unsigned column)
{
    return table->cells[row * table->count + column];
}

static void fill_cell(const struct table *table, size_t row, unsigned column, const json_t *document)
{
    char raw[CELL_MAX] = "";
    const struct cli_column *c = table->columns[column];
    const json_t *member = c->member ? cli_member(document, c->member) : NULL;
    if (c->show)
        c->show(document, member, raw, sizeof raw);
    else
        show_plain(member, raw, sizeof raw);
    text_clean(cell(table, row, column), CELL_MAX, *raw ? raw : "-", "");
}

static bool fill(struct table *table, const json_t *list)
{
    table->rows = 1 + json_array_size(list);
    table->cells = calloc(table->rows * table->count, sizeof *table->cells);
    if (!table->cells)
        return false;
    for (unsigned column = 0; column < table->count; column++)
        for (size_t row = 0; row < table->rows; row++) {
            if (row == 0)
                snprintf(cell(table, row, column), CELL_MAX, "%s", table->columns[column]->title);
            else
                fill_cell(table, row, column, json_array_get(list, row - 1));
            unsigned width = text_width(cell(table, row, column));
            table->width[column] = width > table->width[column] ? width : table->width[column];
        }
    return true;
}

/* Columns of the terminal; 0: it is none, whatever is long stays long. */
static unsigned terminal_columns(void)
{
    struct winsize size;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

/* Takes columns away where there are most, but never from the name, and never below its title's width. */
static void fit(struct table *table, unsigned available)
{
    for (;;) {
        unsigned total = 0, widest = 0;
        for (unsigned i = 0; i < table->count; i++) {
            total += table->width[i] + (i + 1 < table->count ? GAP : 0);
            if (i && table->width[i] > strlen(table->columns[i]->title) && (!widest || table->width[i] > table->width[widest]))
                widest = i;
        }
        if (total <= available || !widest)
            return;
        table->width[widest]--;
    }
}

static void print_table(struct table *table)
{
    for (size_t row = 0; row < table->rows; row++)
        for (unsigned i = 0; i < table->count; i++) {
            char *text = cell(table, row, i);
            text_cut(text, CELL_MAX, table->width[i]);
            bool last = i + 1 == table->count;
            printf("%s%*s", text, last ? 0 : (int)(table->width[i] - text_width(text) + GAP), "");
            if (last)
                putchar('\n');
        }
}

static bool is_shown(const struct cli *cli, const struct cli_column *column)
{
    return !column->wide || cli->output == OUTPUT_WIDE;
}

void cli_list_fields(const struct cli *cli, const struct cli_column *columns, char *fields, size_t size)
{
    size_t used = 0;
    bool names_only = cli->output == OUTPUT_NAME || cli->quiet;
    for (const struct cli_column *c = columns; c->title && used < size; c++)
        if (is_shown(cli, c) && !(names_only && c != columns))
            used += (size_t)snprintf(fields + used, size - used, "%s%s", used ? "," : "", c->member);
}

static int show_table(const struct cli *cli, const json_t *list, const struct cli_column *columns)
{
    struct table table = {0};
    for (const struct cli_column *c = columns; c->title && table.count < COLUMNS_MAX; c++)
        if (is_shown(cli, c))
            table.columns[table.count++] = c;
    if (!table.count || !fill(&table, list))
        return -ENOMEM;
    unsigned available = terminal_columns();
    if (available && cli->output != OUTPUT_WIDE)
        fit(&table, available);
    print_table(&table);
    free(table.cells);
    return 0;
}

static void print_names(const json_t *list, const char *member)
{
    size_t at;
    json_t *document;
    json_array_foreach(list, at, document) {
        text_print(stdout, cli_text(document, member), "");
        putchar('\n');
    }
}

int cli_print_list(const struct cli *cli, const json_t *list, const struct cli_column *columns)
{
    if (cli->output == OUTPUT_JSON)
        return print_json(list);
    if (cli->output == OUTPUT_NAME || cli->quiet) {
        print_names(list, columns[0].member);
        return 0;
    }
    return show_table(cli, list, columns);
}

int cli_print_document(const struct cli *cli, const json_t *document)
{
    if (cli->output != OUTPUT_NAME)
        return print_json(document);
    text_print(stdout, cli_text(document, "name"), "");
    putchar('\n');
    return 0;
}

void cli_complain(const struct err *err)
{
    fputs("polder: ", stderr);
    text_print(stderr, err->message, "");
    fputc('\n', stderr);
}

void cli_say(const struct cli *cli, const char *format, ...)
{
    char text[1024];
    va_list args;
    if (cli->quiet || cli->output == OUTPUT_JSON)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    text_print(stdout, text, "");
    putchar('\n');
}
