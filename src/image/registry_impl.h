/* Inside the image floor: HTTP to registries. Everything that comes back is foreign: bounded here, checked by who asked. */
#pragma once

#include "image/image_impl.h"

#define HTTP_URL_SIZE 4096
#define HTTP_TRIES 6 /* of a request that a broken connection or a busy server ended */

/* ---- auth.c: RFC 9110 §11.6.1, distribution's "token authentication" ---- */

enum auth_scheme { AUTH_NONE, AUTH_BASIC, AUTH_BEARER };

struct auth_challenge {
    enum auth_scheme scheme;
    char realm[1024], service[256];
};

/* Of one WWW-Authenticate header's value; false if it is malformed or of another scheme. */
bool auth_challenge_parse(const char *text, struct auth_challenge *ret_challenge);

/* ---- http.c ---- */

/* One thread's way to a server. */
struct http {
    void *easy; /* CURL */
    const struct image_remote *remote;
    struct image_meter *meter;
};

struct http_request {
    const char *method, *url;
    const char *authorization; /* header value; never sent on to another origin than the URL's */
    const char *accept, *content_type;
    const char *body; /* text, or NULL */
    size_t body_len;
    int file_fd; /* body from a file from its start, when file_len is not 0 */
    uint64_t file_len;
    /* Where a successful answer's body goes, after what is in it already; else to the response. */
    struct blob_writer *writer;
    uint64_t writer_max; /* bytes that it may have at the end */
};

struct http_response {
    long status;
    char location[HTTP_URL_SIZE]; /* absolute */
    char digest[IMAGE_DIGEST_SIZE]; /* Docker-Content-Digest, if it is a valid one */
    uint64_t range_start;           /* of a 206's bytes */
    struct auth_challenge challenge;
    char *body; /* at most IMAGE_JSON_MAX bytes; free with http_response_clear */
    size_t body_len;
};

must_check int http_open(struct http *ret_http, const struct image_remote *remote, struct image_meter *meter, struct err *err);
void http_close(struct http *http);
/* One request, its redirects followed (GET and HEAD). Any status is a success; -ECONNRESET: another try might help;
 * -EPROTONOSUPPORT: the server does not speak TLS. */
must_check int http_perform(struct http *http, const struct http_request *request, struct http_response *ret_response,
                            struct err *err);
void http_response_clear(struct http_response *response);

/* ---- url.c ---- */

/* Scheme, host and port are the same. */
bool url_same_origin(const char *a, const char *b);
/* `location` as seen from `base`; -EINVAL if it is no http(s) URL, too long, or leaves https where that is not allowed. */
must_check int url_resolve(const char *base, const char *location, bool insecure, char ret_url[static HTTP_URL_SIZE],
                           struct err *err);
/* Adds "name=value" to a URL's query, escaped. */
must_check int url_add_query(char url[static HTTP_URL_SIZE], const char *name, const char *value, struct err *err);

/* ---- registry.c ---- */

/* One repository of a registry. Threads share it. */
struct registry {
    const struct image_ref *ref;
    const struct image_remote *remote;
    struct image_meter *meter;
    const char *actions;    /* "pull" or "pull,push" */
    const char *mount_from; /* repository to take blobs from as well, or NULL */
    char base[300];         /* "https://HOST" */
    pthread_mutex_t lock;
    char *authorization; /* header value, once it is known */
};

/* Finds out how to talk to it, and logs in. */
must_check int registry_open(struct registry *registry, struct err *err);
void registry_close(struct registry *registry);
/* A request, whose `url` is a path below /v2/REPOSITORY/ or an absolute URL; logs in again where the token has ended, and tries
 * again where the server is busy or the connection broke, unless the request carries a file. */
must_check int registry_call(struct registry *registry, struct http *http, const struct http_request *request,
                             struct http_response *ret_response, struct err *err);
/* What an unexpected status means, as an error with the registry's own words. */
must_check int registry_refused(const struct registry *registry, const struct http_response *response, const char *what,
                                struct err *err);
/* Gets a header value by the challenge (auth.c). */
must_check int registry_log_in(struct registry *registry, struct http *http, const struct auth_challenge *challenge,
                               char **ret_authorization, struct err *err);
