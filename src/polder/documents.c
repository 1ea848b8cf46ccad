#include "polder/documents.h"

#include <errno.h>

int documents_list(struct cli *cli, const struct documents *documents, struct err *err)
{
    json_t *answer = NULL;
    int r = cli_get(cli, &answer, err, documents->path);
    if (r == 0)
        r = cli_print_list(cli, cli_array(answer), documents->columns);
    json_decref(answer);
    return r;
}

/* "/v1/networks" and "/%s" */
static const char *below(const struct documents *documents, const char *what, char format[64])
{
    snprintf(format, 64, "%s%s", documents->path, what);
    return format;
}

int documents_inspect(struct cli *cli, const struct documents *documents, struct err *err)
{
    char format[64];
    json_t *answer = NULL;
    int r = cli_get(cli, &answer, err, below(documents, "/%s", format), cli_operand(cli, 0));
    if (r == 0)
        r = cli_print_document(cli, answer);
    json_decref(answer);
    return cli_suggest(cli, documents->path, cli_operand(cli, 0), r, err);
}

int documents_remove(struct cli *cli, const struct documents *documents, struct err *err)
{
    char format[64];
    int r = 0;
    for (size_t at = 0; r == 0 && cli_operand(cli, at); at++) {
        json_t *answer = NULL;
        const char *name = cli_operand(cli, at);
        r = cli_delete(cli, &answer, err, below(documents, "/%s", format), name);
        if (r == 0)
            r = cli_finish(cli, answer, NULL, err);
        r = cli_suggest(cli, documents->path, name, r, err);
        if (r == 0)
            cli_say(cli, "%s", name);
    }
    return r;
}

int documents_create(struct cli *cli, const struct documents *documents, json_t *body, struct err *err)
{
    json_t *answer = NULL, *result = NULL;
    int r = body ? cli_post(cli, body, &answer, err, documents->path) : err_say(err, EINVAL, "a name or value is not UTF-8");
    if (r == 0)
        r = cli_finish(cli, answer, &result, err);
    if (r == 0 && cli->output == OUTPUT_JSON)
        r = cli_print_document(cli, result);
    else if (r == 0)
        cli_say(cli, "%s", cli_operand(cli, 0));
    json_decref(result);
    return r;
}

int documents_act(struct cli *cli, const struct documents *documents, const char *verb, json_t *body, const char *done, struct err *err)
{
    char format[64];
    json_t *answer = NULL;
    const char *name = cli_operand(cli, 0);
    int r = cli_post(cli, body, &answer, err, below(documents, "/%s/%s", format), name, verb);
    if (r == 0)
        r = cli_finish(cli, answer, NULL, err);
    if (r == 0)
        cli_say(cli, "%s", done);
    return cli_suggest(cli, documents->path, name, r, err);
}
