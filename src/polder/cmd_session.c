/* exec, attach, console, cp: ways into an instance. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "polder/cli.h"
#include "polder/commands.h"
#include "polder/copy.h"
#include "polder/session.h"
#include "polder/terminal.h"

#define LEAVE_SESSION "\x10\x11" /* Ctrl-P Ctrl-Q */
#define LEAVE_CONSOLE "\x1d"     /* Ctrl-] */

/* A lost connection is no failure of the command: its status is not known. */
static int end(struct cli *cli, const char *name, int r, int status, struct err *err)
{
    if (r == -EPIPE) {
        fprintf(stderr, "polder: %s\n", err->message);
        return CLI_STATUS_LOST;
    }
    if (r < 0)
        return cli_suggest(cli, "/v1/instances", name, r, err);
    return status == SESSION_DETACHED ? 0 : status;
}

static json_t *words_from(const struct cli *cli, size_t first)
{
    json_t *words = json_array();
    for (size_t at = first; cli_operand(cli, at); at++)
        if (json_array_append_new(words, json_string(cli_operand(cli, at))) < 0) {
            json_decref(words);
            return NULL;
        }
    return words;
}

/* The first message: what is to be run, and how. */
static int exec_request(const struct cli *cli, json_t **ret_request, struct err *err)
{
    const char *value;
    int rows, columns, r = 0;
    json_t *env = json_array(), *args = words_from(cli, 1);
    for (size_t at = 0; r == 0 && (value = args_next(&cli->args, "env", &at)) != NULL;)
        r = json_array_append_new(env, json_string(value));
    json_t *request = r == 0 && args ? json_pack("{s:O, s:b, s:b, s:s*, s:s*}", "args", args, "tty", cli_has(cli, "tty"), "stdin",
                                                 cli_has(cli, "interactive"), "user", cli_value(cli, "user"), "workdir",
                                                 cli_value(cli, "workdir")) : NULL;
    if (request && json_array_size(env))
        json_object_set(request, "env", env);
    if (request && cli_has(cli, "tty") && terminal_size(&rows, &columns)) {
        json_object_set_new(request, "rows", json_integer(rows));
        json_object_set_new(request, "cols", json_integer(columns));
    }
    json_decref(env);
    json_decref(args);
    *ret_request = request;
    return request ? 0 : err_say(err, EINVAL, "the command is not UTF-8");
}

static int run_exec(struct cli *cli, struct err *err)
{
    char path[CLIENT_URL_MAX];
    const char *name = cli_operand(cli, 0);
    struct session session = {.path = path, .use_stdin = cli_has(cli, "interactive"), .tty = cli_has(cli, "tty"), .leave = LEAVE_SESSION};
    int status = 0;
    if (session.tty && session.use_stdin && !isatty(STDIN_FILENO))
        return err_say(err, EINVAL, "-t wants a terminal, and standard input is none: leave -t out");
    int r = exec_request(cli, &session.first, err);
    if (r == 0)
        r = client_path(path, err, "/v1/instances/%s/exec", name);
    if (r == 0)
        r = session_run(cli, &session, &status, err);
    json_decref(session.first);
    return end(cli, name, r, status, err);
}

/* Whether the instance's command has a terminal and input decides how it is attached to. */
static int run_attach(struct cli *cli, struct err *err)
{
    char path[CLIENT_URL_MAX];
    const char *name = cli_operand(cli, 0);
    json_t *instance = NULL;
    struct session session = {.path = path, .leave = LEAVE_SESSION};
    int status = 0;
    int r = cli_get(cli, &instance, err, "/v1/instances/%s", name);
    if (r == 0) {
        session.tty = json_is_true(cli_member(instance, "spec.tty")) && isatty(STDIN_FILENO);
        session.use_stdin = json_is_true(cli_member(instance, "spec.stdin")) && !cli_has(cli, "no-stdin");
        r = client_path(path, err, "/v1/instances/%s/attach?stdin=%d&tty=%d", name, session.use_stdin, session.tty);
    }
    json_decref(instance);
    if (r == 0)
        r = session_run(cli, &session, &status, err);
    return end(cli, name, r, status, err);
}

int session_console(struct cli *cli, const char *name, struct err *err)
{
    char path[CLIENT_URL_MAX];
    bool tty = isatty(STDIN_FILENO);
    struct session session = {.path = path, .use_stdin = true, .tty = tty, .leave = LEAVE_CONSOLE, .console = true};
    int status = 0;
    int r = client_path(path, err, "/v1/instances/%s/console", name);
    if (tty)
        fprintf(stderr, "The console of %s; Ctrl-] leaves it.\n", name);
    if (r == 0)
        r = session_run(cli, &session, &status, err);
    return end(cli, name, r, status, err);
}

static int run_console(struct cli *cli, struct err *err)
{
    return session_console(cli, cli_operand(cli, 0), err);
}

/* "web:/path" -> "web", "/path"; false: a path of this host ("./a:b" and "/a:b" are). */
static bool split_place(char *place, char **ret_path)
{
    char *colon = strchr(place, ':'), *slash = strchr(place, '/');
    if (!colon || colon == place || (slash && slash < colon) || *place == '.')
        return false;
    *colon = '\0';
    *ret_path = colon + 1;
    return true;
}

static int run_cp(struct cli *cli, struct err *err)
{
    char source[4096], target[4096], *source_path = source, *target_path = target;
    snprintf(source, sizeof source, "%s", cli_operand(cli, 0));
    snprintf(target, sizeof target, "%s", cli_operand(cli, 1));
    bool from_instance = split_place(source, &source_path), to_instance = split_place(target, &target_path);
    if (from_instance == to_instance)
        return err_say(err, EINVAL, from_instance ? "cp copies from or to this host: take two steps"
                                                  : "one of the two is in an instance: INSTANCE:/PATH");
    const char *path = from_instance ? source_path : target_path, *name = from_instance ? source : target;
    if (*path != '/')
        return err_say(err, EINVAL, "'%s:%s': the path in an instance begins with /", name, path);
    int r = cli_open(cli, err);
    if (r == 0)
        r = from_instance ? copy_from(cli, name, path, target, err) : copy_to(cli, source, name, path, err);
    return cli_suggest(cli, "/v1/instances", name, r, err);
}

static const struct option_spec exec_options[] = {
    {"i,interactive", NULL, "give it standard input", NULL, NULL},
    {"t,tty", NULL, "give it a terminal", NULL, NULL},
    {"e,env", "NAME=VALUE", "a variable; repeat for more", NULL, NULL},
    {"w,workdir", "DIR", "folder that it runs in", NULL, NULL},
    {"u,user", "USER[:GROUP]", "user that it runs as", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static const struct option_spec attach_options[] = {
    {"no-stdin", NULL, "look only", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command session_commands[] = {
    {.name = "exec", .operands = "INSTANCE COMMAND [ARG...]", .summary = "run a command in an instance that runs", .rest = true,
     .own_status = true, .options = exec_options, .run = run_exec,
     .description = "polder ends with the command's status. Ctrl-P Ctrl-Q leaves a session with a terminal.",
     .examples = "polder exec web -- cat /etc/hostname\npolder exec -it web -- bash\n"},
    {.name = "attach", .operands = "INSTANCE", .summary = "get to the main process of an instance", .own_status = true,
     .options = attach_options, .run = run_attach, .description = "Ctrl-P Ctrl-Q leaves it running."},
    {.name = "console", .operands = "INSTANCE", .summary = "get to the serial console of an instance", .run = run_console,
     .description = "Ctrl-] leaves it."},
    {.name = "cp", .operands = "SOURCE TARGET", .summary = "copy files or folders to or from an instance that runs", .run = run_cp,
     .description = "One of the two is INSTANCE:/PATH. A target that is a folder gets the source under its name; any other becomes the "
                    "copy. \"-\" as this host's side is a tar archive on standard input or output.",
     .examples = "polder cp index.html web:/srv/\npolder cp web:/var/log ./log\n"},
    {.name = NULL},
};
