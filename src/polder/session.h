/* A terminal session over a WebSocket: exec, attach, console. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include "base/err.h"

struct cli;

#define SESSION_DETACHED (-1) /* instead of an exit status: the user left, the command goes on */

struct session {
    const char *path;     /* of the WebSocket */
    const char *leave;    /* keys that leave it, with a terminal; NULL: none */
    json_t *first;        /* first control message, borrowed; NULL: none */
    bool use_stdin, tty;
    bool console;         /* ends with the connection, not with a status */
};

/* Runs it until the command ends or the user leaves. *ret_status: 0..255, or SESSION_DETACHED. -EPIPE: the connection was lost
 * while the command ran. */
must_check int session_run(struct cli *cli, const struct session *session, int *ret_status, struct err *err);
/* The serial console of the instance `name`, until it ends or the user leaves. The command's status. */
must_check int session_console(struct cli *cli, const char *name, struct err *err);
