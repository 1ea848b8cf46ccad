/* A repository of a registry: which scheme it speaks, who we are to it, requests with their retries. distribution-spec v1.1. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "image/registry_impl.h"

#define FIRST_DELAY_MS 200
#define WORDS_MAX 100 /* of a registry's own message */

/* docker.io is a name in references; its registry has another. */
static const char *server(const struct registry *registry)
{
    return strcmp(registry->ref->registry, "docker.io") ? registry->ref->registry : "registry-1.docker.io";
}

/* ---- errors ---- */

/* The first message in a registry's answer, printable characters only. */
static void registry_words(const struct http_response *response, char *ret_words, size_t size)
{
    own_json json_t *json = response->body ? json_loadb(response->body, response->body_len, 0, NULL) : NULL;
    const json_t *first = json_array_get(json_object_get(json, "errors"), 0);
    const char *text = image_json_string(first, "message");
    size_t length = 0;
    for (; *text && length + 1 < size; text++)
        ret_words[length++] = *text >= ' ' && *text < 0x7f ? *text : '?';
    ret_words[length] = '\0';
}

int registry_refused(const struct registry *registry, const struct http_response *response, const char *what, struct err *err)
{
    char words[WORDS_MAX];
    registry_words(response, words, sizeof words);
    const char *name = registry->ref->registry, *colon = words[0] ? ": " : "";
    if (response->status == 401 || response->status == 403)
        return err_say(err, EACCES, "registry %.60s refuses to %s%s%s (wrong or missing name and password, or no such image)", name,
                       what, colon, words);
    if (response->status == 404)
        return err_say(err, ENOENT, "registry %.60s has no %.80s to %s%s%s", name, registry->ref->repository, what, colon, words);
    return err_say(err, EIO, "registry %.60s answers %ld to %s%s%s", name, response->status, what, colon, words);
}

/* ---- requests ---- */

static int copy_authorization(struct registry *registry, char **ret_value, struct err *err)
{
    pthread_mutex_lock(&registry->lock);
    char *value = registry->authorization ? strdup(registry->authorization) : NULL;
    bool failed = registry->authorization && !value;
    pthread_mutex_unlock(&registry->lock);
    *ret_value = value;
    return failed ? err_set(err, ENOMEM, "log in") : 0;
}

/* Logs in, unless another thread has since `stale` was sent. */
static int log_in_again(struct registry *registry, struct http *http, const struct auth_challenge *challenge, const char *stale,
                        struct err *err)
{
    int ret = 0;
    pthread_mutex_lock(&registry->lock);
    bool same = stale && registry->authorization ? !strcmp(stale, registry->authorization) : stale == registry->authorization;
    if (same) {
        char *value = NULL;
        ret = registry_log_in(registry, http, challenge, &value, err);
        if (ret == 0) {
            free(registry->authorization);
            registry->authorization = value;
        }
    }
    pthread_mutex_unlock(&registry->lock);
    return ret;
}

/* With what is known of us; once more after logging in if that is not enough. */
static int call_authorized(struct registry *registry, struct http *http, struct http_request *request,
                           struct http_response *ret_response, struct err *err)
{
    for (bool again = false;; again = true) {
        own_free char *authorization = NULL;
        struct http_response response;
        int ret = copy_authorization(registry, &authorization, err);
        request->authorization = url_same_origin(request->url, registry->base) ? authorization : NULL;
        if (ret == 0)
            ret = http_perform(http, request, &response, err);
        if (ret < 0)
            return ret;
        if (response.status != 401 || again || response.challenge.scheme == AUTH_NONE) {
            *ret_response = response;
            return 0;
        }
        http_response_clear(&response);
        ret = log_in_again(registry, http, &response.challenge, authorization, err);
        if (ret < 0)
            return ret;
    }
}

static bool is_busy(const struct http_response *response)
{
    return response->status == 429 || (response->status >= 500 && response->status != 501);
}

static int absolute_url(const struct registry *registry, const char *url, char ret_url[static HTTP_URL_SIZE], struct err *err)
{
    int n = strstr(url, "://") ? snprintf(ret_url, HTTP_URL_SIZE, "%s", url)
                               : snprintf(ret_url, HTTP_URL_SIZE, "%s/v2/%s/%s", registry->base, registry->ref->repository, url);
    return n < HTTP_URL_SIZE ? 0 : err_say(err, EINVAL, "a URL of the registry is too long");
}

int registry_call(struct registry *registry, struct http *http, const struct http_request *request,
                  struct http_response *ret_response, struct err *err)
{
    char url[HTTP_URL_SIZE];
    struct http_request whole = *request;
    int ret = absolute_url(registry, request->url, url, err);
    if (ret < 0)
        return ret;
    whole.url = url;
    unsigned delay_ms = FIRST_DELAY_MS;
    for (unsigned tries = HTTP_TRIES;; delay_ms *= 2) {
        struct http_response response = {0};
        ret = call_authorized(registry, http, &whole, &response, err);
        bool retry = ret == -ECONNRESET || (ret == 0 && is_busy(&response));
        if (!retry || --tries == 0 || request->file_len || request->writer) {
            if (ret == 0)
                *ret_response = response;
            return ret < 0 ? err_ctx(err, "registry %s", registry->ref->registry) : 0;
        }
        http_response_clear(&response);
        meter_sleep(registry->meter, delay_ms);
    }
}

/* ---- the first contact ---- */

/* Asks whether it is a registry at all; what comes back says how to log in. */
static int ping(struct registry *registry, const char *scheme, struct http *http, struct http_response *ret_response, struct err *err)
{
    char url[HTTP_URL_SIZE];
    snprintf(registry->base, sizeof registry->base, "%s://%s", scheme, server(registry));
    snprintf(url, sizeof url, "%s/v2/", registry->base);
    struct http_request request = {.method = "GET", .url = url};
    int ret = http_perform(http, &request, ret_response, err);
    return ret < 0 ? err_ctx(err, "registry %s", registry->ref->registry) : 0;
}

static int find_scheme(struct registry *registry, struct http *http, struct http_response *ret_response, struct err *err)
{
    bool insecure = registry->remote && registry->remote->insecure;
    int ret = ping(registry, "https", http, ret_response, err);
    if (insecure && (ret == -EPROTONOSUPPORT || ret == -ECONNRESET))
        return ping(registry, "http", http, ret_response, err);
    if (ret == -EPROTONOSUPPORT)
        return err_say(err, EPROTONOSUPPORT, "registry %.80s does not speak https: if that is meant to be, use the option 'insecure'",
                       registry->ref->registry);
    return ret;
}

int registry_open(struct registry *registry, struct err *err)
{
    struct http http;
    struct http_response response;
    pthread_mutex_init(&registry->lock, NULL);
    registry->authorization = NULL;
    int ret = http_open(&http, registry->remote, registry->meter, err);
    if (ret < 0)
        return ret;
    ret = find_scheme(registry, &http, &response, err);
    if (ret == 0) {
        if (response.status == 401)
            ret = log_in_again(registry, &http, &response.challenge, NULL, err);
        else if (response.status != 200)
            ret = registry_refused(registry, &response, "be asked for its version", err);
        http_response_clear(&response);
    }
    http_close(&http);
    return ret;
}

void registry_close(struct registry *registry)
{
    free(registry->authorization);
    pthread_mutex_destroy(&registry->lock);
}
