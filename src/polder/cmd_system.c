/* system info, df, prune, doctor; shown as lines "member: value". */
#include <errno.h>
#include <string.h>

#include "polder/cli.h"
#include "polder/commands.h"
#include "polder/text.h"

/* A leaf of a document: sizes by their names, the rest as it is. */
static void show_leaf(const char *key, const json_t *value)
{
    char text[512] = "";
    size_t len = strlen(key);
    if (len > 6 && strcmp(key + len - 6, "_bytes") == 0)
        cli_show_size(NULL, value, text, sizeof text);
    else
        cli_show_words(NULL, value, text, sizeof text);
    text_print(stdout, *text ? text : "-", "");
    putchar('\n');
}

/* Objects indented, arrays of objects one after the other. */
static void show(const json_t *document, int depth)
{
    const char *key;
    json_t *value, *item;
    size_t at;
    json_object_foreach((json_t *)(uintptr_t)document, key, value) {
        bool nested = json_is_object(value) || json_is_object(json_array_get(value, 0));
        printf("%*s", depth * 2, "");
        text_print(stdout, key, "");
        fputs(nested ? ":\n" : ": ", stdout);
        if (json_is_object(value))
            show(value, depth + 1);
        else if (!nested)
            show_leaf(key, value);
        else
            json_array_foreach(value, at, item)
                show(item, depth + 1);
    }
}

static int get_and_show(struct cli *cli, const char *path, struct err *err)
{
    json_t *answer = NULL;
    int r = cli_get(cli, &answer, err, path);
    if (r == 0 && cli->output == OUTPUT_JSON)
        r = cli_print_document(cli, answer);
    else if (r == 0)
        show(answer, 0);
    json_decref(answer);
    return r;
}

static int run_info(struct cli *cli, struct err *err) { return get_and_show(cli, "/v1/system", err); }
static int run_df(struct cli *cli, struct err *err) { return get_and_show(cli, "/v1/system/df", err); }

/* ---- doctor: [{"name", "ok", "detail", "cure"}] ---- */

static const struct cli_column doctor_columns[] = {
    {"CHECK", "name", NULL, false}, {"OK", "ok", NULL, false}, {"FOUND", "detail", NULL, false}, {"CURE", "cure", NULL, false},
    {NULL, NULL, NULL, false},
};

static int run_doctor(struct cli *cli, struct err *err)
{
    json_t *answer = NULL, *check;
    size_t at;
    int status = 0, r = cli_get(cli, &answer, err, "/v1/system/doctor");
    if (r < 0)
        return r;
    json_array_foreach(cli_array(answer), at, check)
        if (json_is_false(json_object_get(check, "ok")))
            status = CLI_STATUS_FAILED;
    r = cli_print_list(cli, cli_array(answer), doctor_columns);
    json_decref(answer);
    return r < 0 ? r : status;
}

static int run_prune(struct cli *cli, struct err *err)
{
    json_t *answer = NULL, *result = NULL;
    int r = cli_post(cli, NULL, &answer, err, "/v1/system/prune");
    if (r == 0)
        r = cli_finish(cli, answer, &result, err);
    if (r == 0 && cli->output == OUTPUT_JSON)
        r = cli_print_document(cli, result);
    else if (r == 0)
        show(result, 0);
    json_decref(result);
    return r;
}

const struct command system_commands[] = {
    {.name = "info", .operands = "", .summary = "show what polderd is and has", .run = run_info},
    {.name = "df", .operands = "", .summary = "show what takes room", .run = run_df},
    {.name = "prune", .operands = "", .summary = "remove stopped instances' leftovers and what no image needs", .run = run_prune},
    {.name = "doctor", .operands = "", .summary = "check what this host lacks, and say how to get it", .run = run_doctor,
     .description = "Ends with 1 when something is not as it should be. -o wide shows long lines whole."},
    {.name = NULL},
};
