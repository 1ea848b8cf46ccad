/* What commands share: values of options, calls, names that are nearly right. */
#include "polder/cli.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/size.h"
#include "polder/text.h"

const char *cli_operand(const struct cli *cli, size_t at)
{
    return args_operand_at(&cli->args, at);
}

const char *cli_value(const struct cli *cli, const char *option)
{
    return args_value(&cli->args, option);
}

bool cli_has(const struct cli *cli, const char *option)
{
    return args_has(&cli->args, option);
}

int cli_size(const struct cli *cli, const char *option, uint64_t *ret_bytes, struct err *err)
{
    const char *value = cli_value(cli, option);
    if (value && !size_parse(value, 1, ret_bytes))
        return err_say(err, EINVAL, "--%s: '%s' is no size: a number and K, M, G or T, like 512M", option, value);
    return 0;
}

int cli_number(const struct cli *cli, const char *option, long least, long most, long *ret_number, struct err *err)
{
    const char *value = cli_value(cli, option);
    if (!value)
        return 0;
    char *end;
    errno = 0;
    long number = strtol(value, &end, 10);
    if (errno || end == value || *end || number < least || number > most)
        return err_say(err, EINVAL, "--%s: '%s' is no number from %ld to %ld", option, value, least, most);
    *ret_number = number;
    return 0;
}

/* ---- talking to polderd ---- */

/* The one for all users if it is there, else the user's own. `buffer` holds the path. */
static const char *default_socket(char *buffer, size_t size)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    const char *common = "/run/polder/polderd.sock";
    struct stat st;
    snprintf(buffer, size, "%s%s/polder/run/polderd.sock", data ? data : home ? home : "", data ? "" : "/.local/share");
    return stat(common, &st) < 0 && stat(buffer, &st) == 0 ? buffer : common;
}

int cli_open(struct cli *cli, struct err *err)
{
    static char own_socket[4096]; /* the client borrows it */
    struct client_options options = {
        .socket = cli_value(cli, "socket"), .remote = cli_value(cli, "remote"), .token_file = cli_value(cli, "token-file"),
        .tls_ca = cli_value(cli, "tls-ca"), .tls_cert = cli_value(cli, "tls-cert"), .tls_key = cli_value(cli, "tls-key")};
    if (cli->client)
        return 0;
    if (options.socket && options.remote)
        return err_say(err, EINVAL, "--socket and --remote both say where polderd is: take one");
    if (!options.socket && !options.remote) {
        const char *socket = getenv("POLDER_SOCKET"), *remote = getenv("POLDER_REMOTE");
        options.socket = socket && *socket ? socket : NULL;
        options.remote = !options.socket && remote && *remote ? remote : NULL;
    }
    if (!options.socket && !options.remote)
        options.socket = default_socket(own_socket, sizeof own_socket);
    return client_open(&options, &cli->client, err);
}

static int call(struct cli *cli, const char *method, json_t *body, json_t **ret_answer, struct err *err, const char *format, va_list args)
{
    char path[CLIENT_URL_MAX];
    int r = cli_open(cli, err);
    if (r == 0)
        r = client_vpath(path, err, format, args);
    if (r < 0) {
        json_decref(body);
        return r;
    }
    return client_call(cli->client, method, path, body, ret_answer, err);
}

int cli_get(struct cli *cli, json_t **ret_answer, struct err *err, const char *path, ...)
{
    va_list args;
    va_start(args, path);
    int r = call(cli, "GET", NULL, ret_answer, err, path, args);
    va_end(args);
    return r;
}

int cli_delete(struct cli *cli, json_t **ret_answer, struct err *err, const char *path, ...)
{
    va_list args;
    va_start(args, path);
    int r = call(cli, "DELETE", NULL, ret_answer, err, path, args);
    va_end(args);
    return r;
}

int cli_post(struct cli *cli, json_t *body, json_t **ret_answer, struct err *err, const char *path, ...)
{
    va_list args;
    va_start(args, path);
    int r = call(cli, "POST", body, ret_answer, err, path, args);
    va_end(args);
    return r;
}

json_t *cli_array(json_t *answer)
{
    const char *key;
    json_t *value;
    if (json_is_array(answer))
        return answer;
    json_object_foreach(answer, key, value)
        if (json_is_array(value))
            return value;
    return NULL;
}

int cli_suggest(struct cli *cli, const char *path, const char *name, int r, struct err *err)
{
    json_t *answer = NULL, *document;
    size_t at;
    struct err ignored;
    if (r != -ENOENT || cli_get(cli, &answer, &ignored, path) < 0)
        return r;
    unsigned best = UINT_MAX;
    const char *nearest = NULL;
    json_array_foreach(cli_array(answer), at, document) {
        const char *candidate = cli_text(document, "name");
        if (text_is_near(name, candidate, &best))
            nearest = candidate;
    }
    size_t used = strlen(err->message);
    if (nearest && strcmp(nearest, name) != 0) /* else something else is not there */
        snprintf(err->message + used, sizeof err->message - used, "; did you mean '%s'?", nearest);
    json_decref(answer);
    return r;
}

json_t *cli_member(const json_t *document, const char *path)
{
    json_t *at = json_object_get(document, path);
    const char *dot = strchr(path, '.');
    if (at || !dot)
        return at;
    return cli_member(json_object_getn(document, path, (size_t)(dot - path)), dot + 1);
}

const char *cli_text(const json_t *document, const char *path)
{
    const char *text = json_string_value(cli_member(document, path));
    return text ? text : "";
}
