#include "polder/client.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include "base/own.h"

#define CONNECT_TIMEOUT_S 10L
#define CALL_TIMEOUT_S 300L /* of a call that is answered as a whole */
#define TOKEN_MAX 4096

struct client {
    struct client_options options;
    CURL *curl; /* kept open from call to call */
    char *authorization;
};

/* ---- opening ---- */

static int read_token(const char *path, char *token, struct err *err)
{
    own_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, token, TOKEN_MAX - 1);
    if (n < 0)
        return err_set(err, errno == EINVAL ? EIO : errno, "token file '%s'", path);
    token[n] = '\0';
    token[strcspn(token, "\r\n")] = '\0';
    return 0;
}

static int take_token(struct client *client, struct err *err)
{
    char token[TOKEN_MAX] = "";
    const char *variable = getenv("POLDER_TOKEN");
    if (client->options.token_file) {
        int r = read_token(client->options.token_file, token, err);
        if (r < 0)
            return r;
    } else if (variable) {
        snprintf(token, sizeof token, "%s", variable);
    }
    for (const char *c = token; *c; c++)
        if (!isgraph((unsigned char)*c))
            return err_say(err, EBADMSG, "the token has a character that no token has; take it as 'polder token create' printed it");
    if (*token && asprintf(&client->authorization, "Authorization: Bearer %s", token) < 0)
        return err_set(err, ENOMEM, "token");
    explicit_bzero(token, sizeof token);
    return 0;
}

int client_open(const struct client_options *options, struct client **ret_client, struct err *err)
{
    if (options->remote && strncmp(options->remote, "https://", 8) != 0)
        return err_say(err, EINVAL, "'%s' is no address of a daemon: https://HOST:PORT", options->remote);
    struct client *client = calloc(1, sizeof *client);
    if (!client)
        return err_set(err, ENOMEM, "client");
    client->options = *options;
    int r = take_token(client, err);
    if (r < 0) {
        client_close(client);
        return r;
    }
    *ret_client = client;
    return 0;
}

void client_close(struct client *client)
{
    if (!client)
        return;
    if (client->curl)
        curl_easy_cleanup(client->curl);
    if (client->authorization)
        explicit_bzero(client->authorization, strlen(client->authorization));
    free(client->authorization);
    free(client);
}

const char *client_authorization(const struct client *client)
{
    return client->authorization;
}

/* ---- paths ---- */

static size_t add_encoded(char *path, size_t at, const char *text)
{
    for (; *text && at + 4 < CLIENT_URL_MAX; text++) {
        bool plain = isalnum((unsigned char)*text) || strchr("-._~", *text);
        at += (size_t)snprintf(path + at, CLIENT_URL_MAX - at, plain ? "%c" : "%%%02X", (unsigned char)*text);
    }
    return at;
}

int client_vpath(char path[CLIENT_URL_MAX], struct err *err, const char *format, va_list args)
{
    size_t at = 0;
    for (const char *c = format; *c && at + 16 < CLIENT_URL_MAX; c++) {
        if (c[0] == '%' && c[1] == 's')
            at = add_encoded(path, at, va_arg(args, const char *));
        else if (c[0] == '%' && c[1] == 'd')
            at += (size_t)snprintf(path + at, CLIENT_URL_MAX - at, "%d", va_arg(args, int));
        else
            path[at++] = *c;
        c += *c == '%';
    }
    path[at] = '\0';
    return at + 16 < CLIENT_URL_MAX ? 0 : err_say(err, ENAMETOOLONG, "a name is too long");
}

int client_path(char path[CLIENT_URL_MAX], struct err *err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int r = client_vpath(path, err, format, args);
    va_end(args);
    return r;
}

/* ---- one request ---- */

struct answer {
    char *data; /* owned; with a NUL behind */
    size_t len;
    bool too_large;
    CURL *curl;
    client_sink_fn *sink; /* takes what is no error; NULL: `data` does */
    void *arg;
    bool stopped; /* by the sink */
};

static size_t keep(struct answer *answer, const char *data, size_t len)
{
    if (answer->len + len > CLIENT_JSON_MAX) {
        answer->too_large = true;
        return 0;
    }
    char *grown = realloc(answer->data, answer->len + len + 1);
    if (!grown)
        return 0;
    memcpy(grown + answer->len, data, len);
    answer->data = grown;
    answer->len += len;
    grown[answer->len] = '\0';
    return len;
}

static size_t on_data(char *data, size_t size, size_t count, void *arg)
{
    struct answer *answer = arg;
    long status = 0;
    curl_easy_getinfo(answer->curl, CURLINFO_RESPONSE_CODE, &status);
    if (!answer->sink || status >= 400)
        return keep(answer, data, size * count);
    answer->stopped = !answer->sink(answer->arg, data, size * count);
    return answer->stopped ? 0 : size * count;
}

static const char *base_url(const struct client *client)
{
    return client->options.remote ? client->options.remote : "http://polder";
}

/* A handle that knows where polderd is and how to prove who we are. */
static int set_up(const struct client *client, CURL *curl, const char *path, struct err *err)
{
    char url[CLIENT_URL_MAX + 512];
    snprintf(url, sizeof url, "%.500s%s", base_url(client), path);
    const struct client_options *options = &client->options;
    CURLcode r = curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 256L << 10); /* long lists in few pieces */
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, CONNECT_TIMEOUT_S);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L); /* sessions are silent for long, and the other end may go without a word */
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    if (!options->remote)
        curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, options->socket);
    if (options->tls_ca)
        curl_easy_setopt(curl, CURLOPT_CAINFO, options->tls_ca);
    if (options->tls_cert)
        curl_easy_setopt(curl, CURLOPT_SSLCERT, options->tls_cert);
    if (options->tls_key)
        curl_easy_setopt(curl, CURLOPT_SSLKEY, options->tls_key);
    return r == CURLE_OK ? 0 : err_say(err, ENOMEM, "%s", curl_easy_strerror(r));
}

/* What went wrong before there was an answer, with the cure. */
static int unreachable(const struct client *client, CURLcode code, const char *detail, struct err *err)
{
    const struct client_options *options = &client->options;
    const char *what = *detail ? detail : curl_easy_strerror(code);
    if (code == CURLE_COULDNT_CONNECT && !options->remote) {
        bool denied = access(options->socket, F_OK) == 0 && access(options->socket, W_OK) < 0;
        return err_say(err, ECONNREFUSED,
                       denied ? "%s may be used by root and group polder only: ask to join it, or say --remote URL"
                              : "no polderd answers at %s: start polderd, or say where it is (--socket PATH, --remote URL)",
                       options->socket);
    }
    if (code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST)
        return err_say(err, ECONNREFUSED, "no polderd answers at %s: %s", options->remote, what);
    if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE)
        return err_say(err, ECONNREFUSED, "%s is not trusted: %s; --tls-ca FILE names the authority to trust", base_url(client), what);
    if (code == CURLE_OPERATION_TIMEDOUT)
        return err_say(err, ETIMEDOUT, "polderd does not answer in time: %s", what);
    if (code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR || code == CURLE_PARTIAL_FILE)
        return err_say(err, EPIPE, "polderd broke the connection off: %s", what);
    return err_say(err, EPROTO, "no proper answer from %s: %s", options->remote ? options->remote : options->socket, what);
}

int client_error(const json_t *error, struct err *err)
{
    static const struct {
        const char *code;
        int error;
    } codes[] = {{"not_found", ENOENT}, {"conflict", EEXIST}, {"denied", EACCES}};
    const char *code = json_string_value(json_object_get(error, "code"));
    const char *message = json_string_value(json_object_get(error, "message"));
    json_int_t exit_code = json_integer_value(json_object_get(error, "exit_code"));
    int value = EREMOTEIO;
    for (size_t i = 0; code && i < sizeof codes / sizeof *codes; i++)
        value = strcmp(codes[i].code, code) == 0 ? codes[i].error : value;
    if (!message)
        return 0;
    int r = err_say(err, value, "%s", message);
    err_set_exit_code(err, exit_code > 0 && exit_code < 256 ? (int)exit_code : 0);
    return r;
}

int client_refused(long status, const char *body, size_t len, struct err *err)
{
    json_t *answer = json_loadb(body ? body : "", body ? len : 0, 0, NULL);
    int r = client_error(json_object_get(answer, "error"), err);
    json_decref(answer);
    return r < 0 ? r : err_say(err, EPROTO, "the server answers %ld without saying why: is it a polderd?", status);
}

/* Runs what is set up; the answer's status decides. */
static int perform(struct client *client, struct answer *answer, struct err *err)
{
    char detail[CURL_ERROR_SIZE] = "";
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    headers = client->authorization ? curl_slist_append(headers, client->authorization) : headers;
    headers = curl_slist_append(headers, "Expect:");
    answer->curl = client->curl;
    curl_easy_setopt(client->curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(client->curl, CURLOPT_ERRORBUFFER, detail);
    curl_easy_setopt(client->curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(client->curl, CURLOPT_WRITEDATA, answer);
    CURLcode code = curl_easy_perform(client->curl);
    curl_slist_free_all(headers);
    long status = 0;
    curl_easy_getinfo(client->curl, CURLINFO_RESPONSE_CODE, &status);
    if (answer->stopped)
        return 0;
    if (answer->too_large)
        return err_say(err, EPROTO, "the answer is larger than %u MiB, which no polderd's is", CLIENT_JSON_MAX >> 20);
    if (status >= 400)
        return client_refused(status, answer->data, answer->len, err);
    return code == CURLE_OK ? 0 : unreachable(client, code, detail, err);
}

/* A handle for the next request, connected still when it can be. */
static int begin(struct client *client, const char *path, struct err *err)
{
    if (client->curl)
        curl_easy_reset(client->curl);
    else
        client->curl = curl_easy_init();
    return client->curl ? set_up(client, client->curl, path, err) : err_set(err, ENOMEM, "connection");
}

static int parse_answer(const struct answer *answer, json_t **ret_answer, struct err *err)
{
    json_error_t error;
    if (!ret_answer)
        return 0;
    json_t *json = answer->len ? json_loadb(answer->data, answer->len, JSON_DECODE_ANY, &error) : json_null();
    if (!json)
        return err_say(err, EPROTO, "the server's answer is no JSON (%s): is it a polderd?", error.text);
    *ret_answer = json;
    return 0;
}

int client_call(struct client *client, const char *method, const char *path, json_t *body, json_t **ret_answer, struct err *err)
{
    struct answer answer = {0};
    own_free char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    json_decref(body);
    int r = begin(client, path, err);
    if (r < 0)
        return r;
    curl_easy_setopt(client->curl, CURLOPT_TIMEOUT, CALL_TIMEOUT_S);
    if (text)
        curl_easy_setopt(client->curl, CURLOPT_POSTFIELDS, text);
    else if (strcmp(method, "POST") == 0)
        curl_easy_setopt(client->curl, CURLOPT_POSTFIELDS, "");
    curl_easy_setopt(client->curl, CURLOPT_CUSTOMREQUEST, method);
    r = perform(client, &answer, err);
    if (r == 0)
        r = parse_answer(&answer, ret_answer, err);
    free(answer.data);
    return r;
}

int client_stream(struct client *client, const char *path, client_sink_fn *sink, void *arg, struct err *err)
{
    struct answer answer = {.sink = sink, .arg = arg};
    int r = begin(client, path, err);
    if (r < 0)
        return r;
    r = perform(client, &answer, err);
    free(answer.data);
    return r;
}

struct upload {
    client_source_fn *source;
    void *arg;
};

static size_t on_read(char *data, size_t size, size_t count, void *arg)
{
    struct upload *upload = arg;
    return upload->source(upload->arg, data, size * count);
}

int client_upload(struct client *client, const char *path, client_source_fn *source, void *arg, curl_off_t len, json_t **ret_answer,
                  struct err *err)
{
    struct answer answer = {0};
    struct upload upload = {source, arg};
    int r = begin(client, path, err);
    if (r < 0)
        return r;
    curl_easy_setopt(client->curl, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(client->curl, CURLOPT_UPLOAD_BUFFERSIZE, 262144L);
    curl_easy_setopt(client->curl, CURLOPT_READFUNCTION, on_read);
    curl_easy_setopt(client->curl, CURLOPT_READDATA, &upload);
    curl_easy_setopt(client->curl, CURLOPT_INFILESIZE_LARGE, len);
    r = perform(client, &answer, err);
    if (r == 0)
        r = parse_answer(&answer, ret_answer, err);
    free(answer.data);
    return r;
}

int client_connect(struct client *client, CURL **ret_connection, struct err *err)
{
    char detail[CURL_ERROR_SIZE] = "";
    CURL *curl = curl_easy_init();
    if (!curl)
        return err_set(err, ENOMEM, "connection");
    int r = set_up(client, curl, "/", err);
    if (r == 0) {
        curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, detail);
        curl_easy_setopt(curl, CURLOPT_CONNECT_ONLY, 1L);
        CURLcode code = curl_easy_perform(curl);
        r = code == CURLE_OK ? 0 : unreachable(client, code, detail, err);
        curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, NULL);
    }
    if (r < 0) {
        curl_easy_cleanup(curl);
        return r;
    }
    *ret_connection = curl;
    return 0;
}
