/* HTTP by libcurl, one easy handle a thread. Redirects are followed here and not by libcurl, because credentials must not
 * go to another origin, nor https lead to http. */
#include <ctype.h>
#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "image/registry_impl.h"

#define REDIRECTS_MAX 5
#define CONNECT_TIMEOUT_S 15L
#define STALL_S 30L /* without a byte: the connection is taken for broken */

/* One exchange, for the callbacks. */
struct exchange {
    struct http *http;
    const struct http_request *request;
    struct http_response *response;
    const char *url;
    uint64_t sent;
    bool writing; /* the body goes to the writer */
    int ret;      /* error of a callback, */
    struct err err; /* and its words */
};

int http_open(struct http *ret_http, const struct image_remote *remote, struct image_meter *meter, struct err *err)
{
    CURL *easy = curl_easy_init();
    if (!easy)
        return err_set(err, ENOMEM, "libcurl");
    *ret_http = (struct http){.easy = easy, .remote = remote, .meter = meter};
    return 0;
}

void http_close(struct http *http)
{
    curl_easy_cleanup(http->easy);
}

void http_response_clear(struct http_response *response)
{
    free(response->body);
    response->body = NULL;
    response->body_len = 0;
}

/* ---- the answer's header ---- */

/* The value, without blanks around it, if the line is of that header. */
static bool header_is(const char *line, size_t length, const char *name, char *ret_value, size_t size)
{
    size_t n = strlen(name);
    if (length <= n || strncasecmp(line, name, n) != 0 || line[n] != ':')
        return false;
    const char *from = line + n + 1, *end = line + length;
    while (from < end && isspace((unsigned char)*from))
        from++;
    while (end > from && isspace((unsigned char)end[-1]))
        end--;
    if ((size_t)(end - from) >= size)
        return false;
    memcpy(ret_value, from, (size_t)(end - from));
    ret_value[end - from] = '\0';
    return true;
}

static size_t on_header(char *line, size_t one, size_t length, void *context)
{
    struct exchange *exchange = context;
    struct http_response *response = exchange->response;
    char value[HTTP_URL_SIZE];
    unsigned long long start;
    struct auth_challenge challenge;
    (void)one;
    if (length > 5 && !memcmp(line, "HTTP/", 5)) { /* the answer to come: what a 100 said is past */
        response->location[0] = response->digest[0] = '\0';
        response->challenge.scheme = AUTH_NONE;
        response->range_start = 0;
    } else if (header_is(line, length, "Location", value, sizeof value)) {
        snprintf(response->location, sizeof response->location, "%s", value);
    } else if (header_is(line, length, "Docker-Content-Digest", value, sizeof value)) {
        if (image_digest_valid(value))
            memcpy(response->digest, value, IMAGE_DIGEST_SIZE);
    } else if (header_is(line, length, "Content-Range", value, sizeof value)) {
        if (sscanf(value, "bytes %llu-", &start) == 1)
            response->range_start = start;
    } else if (header_is(line, length, "WWW-Authenticate", value, sizeof value)) {
        if (auth_challenge_parse(value, &challenge) && challenge.scheme > response->challenge.scheme)
            response->challenge = challenge;
    }
    return length;
}

/* ---- bodies ---- */

static int to_response(struct http_response *response, const char *data, size_t length, struct err *err)
{
    if (length > IMAGE_JSON_MAX - response->body_len)
        return err_say(err, EINVAL, "the registry answers with more than %u bytes", IMAGE_JSON_MAX);
    char *body = realloc(response->body, response->body_len + length + 1);
    if (!body)
        return err_set(err, ENOMEM, "answer of the registry");
    memcpy(body + response->body_len, data, length);
    response->body = body;
    response->body_len += length;
    body[response->body_len] = '\0';
    return 0;
}

/* The first bytes of a blob are here: they go on where the writer is, or begin anew. */
static int begin_writing(struct exchange *exchange, struct err *err)
{
    struct blob_writer *writer = exchange->request->writer;
    exchange->writing = true;
    if (exchange->response->status == 206 && exchange->response->range_start != writer->size_bytes)
        return err_say(err, EINVAL, "the registry sends another part of a blob than was asked for");
    if (exchange->response->status != 200 || !writer->size_bytes)
        return 0;
    meter_add(exchange->http->meter, -(int64_t)writer->size_bytes);
    return blob_writer_rewind(writer, err);
}

static int to_writer(struct exchange *exchange, const char *data, size_t length, struct err *err)
{
    struct blob_writer *writer = exchange->request->writer;
    int ret = meter_check(exchange->http->meter, err);
    if (ret == 0 && !exchange->writing)
        ret = begin_writing(exchange, err);
    if (ret == 0 && length > exchange->request->writer_max - writer->size_bytes)
        ret = err_say(err, EBADMSG, "the registry sends more bytes of a blob than it has");
    if (ret == 0)
        ret = blob_writer_add(writer, data, length, err);
    if (ret == 0)
        meter_add(exchange->http->meter, (int64_t)length);
    return ret;
}

static size_t on_body(char *data, size_t one, size_t length, void *context)
{
    struct exchange *exchange = context;
    (void)one;
    curl_easy_getinfo(exchange->http->easy, CURLINFO_RESPONSE_CODE, &exchange->response->status);
    bool blob = exchange->request->writer && (exchange->response->status == 200 || exchange->response->status == 206);
    exchange->ret = blob ? to_writer(exchange, data, length, &exchange->err)
                         : to_response(exchange->response, data, length, &exchange->err);
    return exchange->ret < 0 ? 0 : length;
}

static size_t on_send(char *buffer, size_t one, size_t size, void *context)
{
    struct exchange *exchange = context;
    uint64_t left = exchange->request->file_len - exchange->sent;
    size_t length = one * size < left ? one * size : (size_t)left;
    ssize_t n = pread(exchange->request->file_fd, buffer, length, (off_t)exchange->sent);
    if (n < 0 || (n == 0 && left)) {
        exchange->ret = err_set(&exchange->err, n < 0 ? errno : EIO, "read a blob");
        return CURL_READFUNC_ABORT;
    }
    exchange->sent += (uint64_t)n;
    meter_add(exchange->http->meter, n);
    return (size_t)n;
}

static int on_seek(void *context, curl_off_t offset, int origin)
{
    struct exchange *exchange = context;
    if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > exchange->request->file_len)
        return CURL_SEEKFUNC_FAIL;
    meter_add(exchange->http->meter, (int64_t)offset - (int64_t)exchange->sent);
    exchange->sent = (uint64_t)offset;
    return CURL_SEEKFUNC_OK;
}

static int on_progress(void *context, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    struct exchange *exchange = context;
    (void)a, (void)b, (void)c, (void)d;
    return meter_cancelled(exchange->http->meter);
}

/* ---- the request ---- */

static struct curl_slist *add_header(struct curl_slist *list, const char *name, const char *value)
{
    own_free char *line = NULL;
    if (!value || asprintf(&line, "%s: %s", name, value) < 0)
        return list;
    struct curl_slist *longer = curl_slist_append(list, line);
    return longer ? longer : list;
}

static struct curl_slist *headers(const struct exchange *exchange)
{
    const struct http_request *request = exchange->request;
    struct curl_slist *list = curl_slist_append(NULL, "Expect:"); /* no waiting for a "100 Continue" */
    if (request->authorization && url_same_origin(request->url, exchange->url))
        list = add_header(list, "Authorization", request->authorization);
    list = add_header(list, "Accept", request->accept);
    return add_header(list, "Content-Type", request->content_type);
}

static void set_body(CURL *easy, struct exchange *exchange)
{
    const struct http_request *request = exchange->request;
    if (request->file_len) {
        curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)request->file_len);
        curl_easy_setopt(easy, CURLOPT_READFUNCTION, on_send);
        curl_easy_setopt(easy, CURLOPT_READDATA, exchange);
        curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, on_seek);
        curl_easy_setopt(easy, CURLOPT_SEEKDATA, exchange);
    } else if (!strcmp(request->method, "HEAD")) {
        curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
        return;
    } else if (strcmp(request->method, "GET") != 0) {
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request->body ? request->body : "");
        curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)request->body_len);
    }
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request->method);
}

static void set_range(CURL *easy, const struct blob_writer *writer)
{
    char range[32];
    if (!writer || !writer->size_bytes)
        return;
    snprintf(range, sizeof range, "%llu-", (unsigned long long)writer->size_bytes);
    curl_easy_setopt(easy, CURLOPT_RANGE, range);
}

static void set_tls(CURL *easy, const struct image_remote *remote)
{
    if (!remote)
        return;
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, remote->insecure ? 0L : 1L);
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, remote->insecure ? 0L : 2L);
    if (remote->ca_file)
        curl_easy_setopt(easy, CURLOPT_CAINFO, remote->ca_file);
}

static void set_options(CURL *easy, struct exchange *exchange, struct curl_slist *list)
{
    curl_easy_reset(easy);
    curl_easy_setopt(easy, CURLOPT_URL, exchange->url);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "polder/" POLDER_VERSION);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, CONNECT_TIMEOUT_S);
    curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, STALL_S);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, list);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, exchange);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, exchange);
    curl_easy_setopt(easy, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(easy, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(easy, CURLOPT_XFERINFODATA, exchange);
    set_tls(easy, exchange->http->remote);
    set_range(easy, exchange->request->writer);
    set_body(easy, exchange);
}

/* ---- performing ---- */

static int failed(const struct exchange *exchange, CURLcode code, const char *detail, struct err *err)
{
    if (exchange->ret < 0) {
        if (err)
            *err = exchange->err;
        return exchange->ret;
    }
    int cancelled = meter_check(exchange->http->meter, err);
    if (cancelled < 0)
        return cancelled;
    const char *text = *detail ? detail : curl_easy_strerror(code);
    if (code == CURLE_PEER_FAILED_VERIFICATION)
        return err_say(err, EACCES, "the server's certificate is not trusted (%.120s): install its CA", text);
    int number = code == CURLE_SSL_CONNECT_ERROR ? EPROTONOSUPPORT : code == CURLE_URL_MALFORMAT ? EINVAL : ECONNRESET;
    return err_say(err, number, "%.150s", text);
}

static int perform_one(struct exchange *exchange, struct err *err)
{
    CURL *easy = exchange->http->easy;
    char detail[CURL_ERROR_SIZE] = "";
    struct curl_slist *list = headers(exchange);
    set_options(easy, exchange, list);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, detail);
    CURLcode code = curl_easy_perform(easy);
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &exchange->response->status);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, NULL);
    curl_slist_free_all(list);
    if (exchange->request->file_len && (code != CURLE_OK || exchange->response->status >= 300)) /* was sent in vain */
        meter_add(exchange->http->meter, -(int64_t)exchange->sent);
    return code == CURLE_OK ? 0 : failed(exchange, code, detail, err);
}

static bool is_redirect(const struct http_request *request, const struct http_response *response)
{
    long status = response->status;
    return (status == 301 || status == 302 || status == 303 || status == 307 || status == 308) && response->location[0] &&
           (!strcmp(request->method, "GET") || !strcmp(request->method, "HEAD"));
}

int http_perform(struct http *http, const struct http_request *request, struct http_response *ret_response, struct err *err)
{
    char url[HTTP_URL_SIZE], location[HTTP_URL_SIZE];
    snprintf(url, sizeof url, "%s", request->url);
    for (unsigned hops = 0; hops <= REDIRECTS_MAX; hops++) {
        struct http_response response = {0};
        struct exchange exchange = {.http = http, .request = request, .response = &response, .url = url};
        int ret = perform_one(&exchange, err);
        if (ret == 0 && response.location[0]) {
            memcpy(location, response.location, sizeof location);
            ret = url_resolve(url, location, http->remote && http->remote->insecure, response.location, err);
        }
        if (ret < 0) {
            http_response_clear(&response);
            return ret;
        }
        if (!is_redirect(request, &response)) {
            *ret_response = response;
            return 0;
        }
        memcpy(url, response.location, sizeof url);
        http_response_clear(&response);
    }
    return err_say(err, EINVAL, "the registry redirects more than %d times", REDIRECTS_MAX);
}
