/* HTTP to polderd over its unix socket or TLS. Everything an answer holds is foreign: its size is bounded here, its text is
 * made harmless where it is printed (text.h). One thread. */
#pragma once

#include <curl/curl.h>
#include <jansson.h>
#include <stdarg.h>
#include "base/err.h"

#define CLIENT_JSON_MAX (64u << 20) /* bytes of an answer that is taken as a whole */
#define CLIENT_URL_MAX 4096

struct client;

struct client_options {
    const char *socket;     /* path; NULL with `remote` */
    const char *remote;     /* "https://HOST:PORT" */
    const char *token_file; /* bearer token; NULL: POLDER_TOKEN, or none */
    const char *tls_ca, *tls_cert, *tls_key; /* PEM files; NULL: the system's CAs, no certificate */
};

/* Nothing is sent yet. */
must_check int client_open(const struct client_options *options, struct client **ret_client, struct err *err);
void client_close(struct client *client); /* NULL is fine */

/* A path for requests from a format with %s only, whose texts are percent-encoded, and %d for int. */
must_check int client_path(char path[CLIENT_URL_MAX], struct err *err, const char *format, ...);
must_check int client_vpath(char path[CLIENT_URL_MAX], struct err *err, const char *format, va_list args);

/* `body` (taken, may be NULL) as JSON; *ret_answer (may be NULL) is a new reference, JSON null when the answer is empty.
 * Errors are -ENOENT not_found, -EEXIST conflict, -EACCES denied, -EREMOTEIO for all else that polderd refuses, with its
 * message; -ECONNREFUSED when it cannot be reached, with the cure; -EPROTO when it answers what is no answer; never -EINVAL. */
must_check int client_call(struct client *client, const char *method, const char *path, json_t *body, json_t **ret_answer,
                           struct err *err);

/* Takes the next bytes of an answer; false ends the transfer (client_stream returns 0 then). */
typedef bool client_sink_fn(void *arg, const char *data, size_t len);
must_check int client_stream(struct client *client, const char *path, client_sink_fn *sink, void *arg, struct err *err);

/* Gives up to `size` bytes to send; 0 at the end; CURL_READFUNC_ABORT breaks off. */
typedef size_t client_source_fn(void *arg, char *data, size_t size);
/* PUT of a body of `len` bytes (-1: not known). */
must_check int client_upload(struct client *client, const char *path, client_source_fn *source, void *arg, curl_off_t len,
                             json_t **ret_answer, struct err *err);

/* A new connection, on which nothing was sent: for websocket.h. The caller's own; curl_easy_cleanup() ends it. */
must_check int client_connect(struct client *client, CURL **ret_connection, struct err *err);
/* "Authorization: Bearer ...", or NULL. */
const char *client_authorization(const struct client *client);
/* {"code", "message", "exit_code"?} as an error; 0: it is none. */
int client_error(const json_t *error, struct err *err);
/* What an error answer says, as an error. */
int client_refused(long status, const char *body, size_t len, struct err *err);
