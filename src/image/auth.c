/* Logging in: challenges, Basic, bearer tokens from the realm that the registry names. */
#include <ctype.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "image/registry_impl.h"

#define TOKEN_MAX 65536 /* bytes */

/* ---- challenges ---- */

static const char *skip(const char *at, const char *set)
{
    return at + strspn(at, set);
}

/* A token or a quoted string; NULL when it is malformed. What does not fit is left empty. */
static const char *take_value(const char *at, char *ret_value, size_t size)
{
    size_t length = 0;
    bool quoted = *at == '"';
    for (at += quoted; *at && (quoted ? *at != '"' : !strchr(", \t", *at)); at++) {
        if (quoted && *at == '\\' && at[1])
            at++;
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            return NULL;
        if (length < size)
            ret_value[length] = *at;
        length++;
    }
    if (quoted && *at++ != '"')
        return NULL;
    ret_value[length < size ? length : 0] = '\0';
    return at;
}

static const char *take_parameter(const char *at, struct auth_challenge *challenge)
{
    const struct {
        const char *name;
        char *value;
        size_t size;
    } known[] = {{"realm", challenge->realm, sizeof challenge->realm}, {"service", challenge->service, sizeof challenge->service}};
    char other[1];
    size_t name = strcspn(at, "= \t,\"");
    const char *value = skip(at + name, " \t");
    if (!name || *value != '=')
        return NULL;
    value = skip(value + 1, " \t");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == name && !strncasecmp(known[i].name, at, name))
            return take_value(value, known[i].value, known[i].size);
    return take_value(value, other, sizeof other);
}

bool auth_challenge_parse(const char *text, struct auth_challenge *ret_challenge)
{
    struct auth_challenge challenge = {0};
    const char *at = skip(text, " \t");
    size_t scheme = strcspn(at, " \t");
    if (scheme == 5 && !strncasecmp(at, "Basic", scheme))
        challenge.scheme = AUTH_BASIC;
    else if (scheme == 6 && !strncasecmp(at, "Bearer", scheme))
        challenge.scheme = AUTH_BEARER;
    else
        return false;
    for (at = skip(at + scheme, " \t,"); *at; at = skip(at, " \t,")) {
        at = take_parameter(at, &challenge);
        if (!at)
            return false;
    }
    if (challenge.scheme == AUTH_BEARER && !challenge.realm[0])
        return false;
    *ret_challenge = challenge;
    return true;
}

/* ---- answers to them ---- */

/* "Basic BASE64"; the caller frees it. */
static int basic_value(const struct image_remote *remote, char **ret_value, struct err *err)
{
    own_free char *pair = NULL;
    if (asprintf(&pair, "%s:%s", remote->username, remote->password ? remote->password : "") < 0)
        return err_set(err, ENOMEM, "log in");
    size_t length = strlen(pair);
    char *value = malloc(strlen("Basic ") + (length + 2) / 3 * 4 + 1);
    if (value) {
        memcpy(value, "Basic ", strlen("Basic "));
        EVP_EncodeBlock((unsigned char *)value + strlen("Basic "), (const unsigned char *)pair, (int)length);
    }
    OPENSSL_cleanse(pair, length);
    *ret_value = value;
    return value ? 0 : err_set(err, ENOMEM, "log in");
}

static bool is_visible(const char *text)
{
    while (*text > ' ' && *text < 0x7f)
        text++;
    return !*text;
}

static int token_value(const struct http_response *response, char **ret_value, struct err *err)
{
    own_json json_t *json = NULL;
    int ret = image_json_parse(response->body ? response->body : "", response->body_len, "answer of the token server", &json, err);
    if (ret < 0)
        return ret;
    const char *token = image_json_string(json, "token");
    if (!*token)
        token = image_json_string(json, "access_token");
    if (!*token || strlen(token) > TOKEN_MAX || !is_visible(token))
        return err_say(err, EINVAL, "the token server answers without a token");
    return asprintf(ret_value, "Bearer %s", token) < 0 ? err_set(err, ENOMEM, "log in") : 0;
}

static int token_url(const struct registry *registry, const struct auth_challenge *challenge, char url[static HTTP_URL_SIZE],
                     struct err *err)
{
    own_free char *scope = NULL, *mount = NULL;
    bool insecure = registry->remote && registry->remote->insecure;
    int ret = url_resolve(registry->base, challenge->realm, insecure, url, err);
    if (ret == 0 && challenge->service[0])
        ret = url_add_query(url, "service", challenge->service, err);
    if (ret == 0 && asprintf(&scope, "repository:%s:%s", registry->ref->repository, registry->actions) < 0)
        ret = err_set(err, ENOMEM, "log in");
    if (ret == 0)
        ret = url_add_query(url, "scope", scope, err);
    if (ret == 0 && registry->mount_from) {
        if (asprintf(&mount, "repository:%s:pull", registry->mount_from) < 0)
            return err_set(err, ENOMEM, "log in");
        ret = url_add_query(url, "scope", mount, err);
    }
    return ret;
}

static int fetch_token(struct registry *registry, struct http *http, const struct auth_challenge *challenge, const char *basic,
                       char **ret_value, struct err *err)
{
    char url[HTTP_URL_SIZE];
    struct http_response response;
    int ret = token_url(registry, challenge, url, err);
    struct http_request request = {.method = "GET", .url = url, .authorization = basic};
    if (ret == 0)
        ret = http_perform(http, &request, &response, err);
    if (ret != 0)
        return ret;
    ret = response.status == 200 ? token_value(&response, ret_value, err) : registry_refused(registry, &response, "log in", err);
    http_response_clear(&response);
    return ret;
}

int registry_log_in(struct registry *registry, struct http *http, const struct auth_challenge *challenge, char **ret_authorization,
                    struct err *err)
{
    own_free char *basic = NULL;
    bool named = registry->remote && registry->remote->username;
    if (challenge->scheme == AUTH_NONE || (challenge->scheme == AUTH_BASIC && !named))
        return err_say(err, EACCES, "registry %.80s wants a user name and a password", registry->ref->registry);
    int ret = named ? basic_value(registry->remote, &basic, err) : 0;
    if (ret < 0)
        return ret;
    if (challenge->scheme == AUTH_BEARER)
        ret = fetch_token(registry, http, challenge, basic, ret_authorization, err);
    else
        *ret_authorization = TAKE(basic);
    if (basic)
        OPENSSL_cleanse(basic, strlen(basic));
    return ret;
}
