/* Long work: polderd answers with an operation, which is asked for its progress until it ends. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "polder/cli.h"
#include "polder/progress.h"

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
    (void)signal;
    if (interrupted++)
        _exit(CLI_STATUS_INTERRUPTED); /* the second time: at once */
}

static bool is_operation(const json_t *answer)
{
    return json_is_string(json_object_get(answer, "id")) && json_is_string(json_object_get(answer, "state")) &&
           json_object_get(answer, "kind");
}

static bool has_ended(const json_t *operation)
{
    const char *state = cli_text(operation, "state");
    return strcmp(state, "succeeded") == 0 || strcmp(state, "failed") == 0 || strcmp(state, "cancelled") == 0;
}

static void show(struct progress *progress, const json_t *operation)
{
    const json_t *done = cli_member(operation, "progress.done"), *total = cli_member(operation, "progress.total");
    json_int_t d = json_integer_value(done), t = json_integer_value(total);
    progress_show(progress, cli_text(operation, "progress.what"), d < 0 ? 0 : (uint64_t)d, t < 0 ? 0 : (uint64_t)t);
}

/* Asks until it has ended; *operation is replaced by what it became. Answers come at each change, and once a second at least,
 * so that Ctrl-C is seen. */
static int follow(struct cli *cli, json_t **operation, struct progress *progress, struct err *err)
{
    bool cancelled = false;
    while (!has_ended(*operation)) {
        json_t *next = NULL;
        const char *id = cli_text(*operation, "id");
        bool cancel = interrupted && !cancelled;
        cancelled |= cancel;
        int r = cancel ? cli_delete(cli, &next, err, "/v1/operations/%s", id)
                       : cli_get(cli, &next, err, "/v1/operations/%s?wait=1&revision=%d", id,
                                 (int)json_integer_value(json_object_get(*operation, "revision")));
        if (r < 0)
            return r;
        if (!is_operation(next)) { /* the answer to a cancel may be nothing */
            json_decref(next);
            if (cancel)
                continue;
            return err_say(err, EPROTO, "the server's answer is no operation: is it a polderd of this version?");
        }
        json_decref(*operation);
        *operation = next;
        show(progress, *operation);
    }
    return 0;
}

static int outcome(const json_t *operation, json_t **ret_result, struct err *err)
{
    const char *state = cli_text(operation, "state");
    if (strcmp(state, "succeeded") == 0) {
        if (ret_result)
            *ret_result = json_incref(json_object_get(operation, "result"));
        return 0;
    }
    if (strcmp(state, "cancelled") == 0)
        return err_say(err, ECANCELED, "%s was cancelled", cli_text(operation, "kind"));
    int r = client_error(json_object_get(operation, "error"), err);
    return r < 0 ? r : err_say(err, EREMOTEIO, "it failed, and polderd does not say why");
}

int cli_finish(struct cli *cli, json_t *answer, json_t **ret_result, struct err *err)
{
    if (!is_operation(answer)) {
        if (ret_result)
            *ret_result = answer;
        else
            json_decref(answer);
        return 0;
    }
    struct progress progress;
    struct sigaction old, action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    interrupted = 0;
    sigaction(SIGINT, &action, &old);
    progress_begin(&progress, cli->quiet);
    int r = follow(cli, &answer, &progress, err);
    progress_end(&progress);
    sigaction(SIGINT, &old, NULL);
    if (r == 0)
        r = outcome(answer, ret_result, err);
    json_decref(answer);
    return r;
}
