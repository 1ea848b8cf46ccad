/* What commands share: the parsed command line, the connection, how results are shown. One thread. */
#pragma once

#include <stdint.h>

#include "polder/args.h"
#include "polder/client.h"
#include "polder/command.h"

#define CLI_STATUS_FAILED 1
#define CLI_STATUS_USAGE 2
#define CLI_STATUS_LOST 125 /* the command ran, how it ended is not known */
#define CLI_STATUS_INTERRUPTED 130

enum cli_output { OUTPUT_TABLE, OUTPUT_WIDE, OUTPUT_JSON, OUTPUT_NAME };

struct cli {
    struct args args;
    struct client *client; /* cli_client() opens it */
    enum cli_output output;
    bool quiet;
};

/* ---- the command line ---- */

const char *cli_operand(const struct cli *cli, size_t at);         /* NULL: not given */
const char *cli_value(const struct cli *cli, const char *option);  /* NULL: not given */
bool cli_has(const struct cli *cli, const char *option);
/* "512M"; *ret_bytes stays when the option is not given. */
must_check int cli_size(const struct cli *cli, const char *option, uint64_t *ret_bytes, struct err *err);
/* A number from `least` to `most`. */
must_check int cli_number(const struct cli *cli, const char *option, long least, long most, long *ret_number, struct err *err);

/* ---- talking to polderd ---- */

/* GET, DELETE, POST. `path` as of client_path(), with further arguments. */
must_check int cli_get(struct cli *cli, json_t **ret_answer, struct err *err, const char *path, ...);
must_check int cli_delete(struct cli *cli, json_t **ret_answer, struct err *err, const char *path, ...);
/* `body` is taken; NULL: none. */
must_check int cli_post(struct cli *cli, json_t *body, json_t **ret_answer, struct err *err, const char *path, ...);
must_check int cli_open(struct cli *cli, struct err *err);
/* When polderd does not know an instance, image, ...: adds the nearest name of the list at `path` to the error. */
int cli_suggest(struct cli *cli, const char *path, const char *name, int r, struct err *err);
/* The array in the answer of a list, which is it or its one member. NULL: there is none. */
json_t *cli_array(json_t *answer);

/* ---- results ---- */

/* A table's column: of each document in a list. */
struct cli_column {
    const char *title;
    const char *member;  /* "status.state" */
    /* Sets `text` when the member alone is not what to show. NULL: the member as it is. */
    void (*show)(const json_t *document, const json_t *member, char *text, size_t size);
    bool wide;           /* with -o wide only */
};

/* Shows a list as --output and --quiet say. `columns` end with a NULL title; the first is the name. */
int cli_print_list(const struct cli *cli, const json_t *list, const struct cli_column *columns);
/* The members that cli_print_list() shows of each document by these columns, with commas between them: to ask for no more. Not
 * of JSON, which shows all. Columns whose `show` takes other members, too, are not known to need them. */
void cli_list_fields(const struct cli *cli, const struct cli_column *columns, char *fields, size_t size);
/* One document: JSON, but for `-o name`, which is its member `name`. */
int cli_print_document(const struct cli *cli, const json_t *document);
/* "polder: ..." on standard error, made harmless. */
void cli_complain(const struct err *err);
/* "web", unless --quiet or JSON: what was made or changed. */
void cli_say(const struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* For `show`. */
void cli_show_size(const json_t *document, const json_t *member, char *text, size_t size);
void cli_show_age(const json_t *document, const json_t *member, char *text, size_t size);
void cli_show_time(const json_t *document, const json_t *member, char *text, size_t size);
void cli_show_words(const json_t *document, const json_t *member, char *text, size_t size);
void cli_show_digest(const json_t *document, const json_t *member, char *text, size_t size);

/* "a.b" of nested objects; NULL: not there. */
json_t *cli_member(const json_t *document, const char *path);
const char *cli_text(const json_t *document, const char *path); /* "" when it is no text */

/* ---- long work (operation.c) ---- */

/* Waits for the operation that `answer` (taken) holds, with progress on standard error; an answer that is no operation is the
 * result itself. *ret_result (may be NULL): a new reference. Ctrl-C cancels it. */
must_check int cli_finish(struct cli *cli, json_t *answer, json_t **ret_result, struct err *err);
