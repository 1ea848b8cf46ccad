/* URLs that servers send: resolved, compared, extended by libcurl's parser, the same that will follow them. */
#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "image/registry_impl.h"

static void own_url_cleanup(CURLU **url)
{
    curl_url_cleanup(*url);
}
#define own_url __attribute__((cleanup(own_url_cleanup)))

/* One part; an empty string where there is none, or it is too long. */
static void get_part(CURLU *url, CURLUPart part, char *ret_text, size_t size)
{
    char *text = NULL;
    *ret_text = '\0';
    if (curl_url_get(url, part, &text, part == CURLUPART_PORT ? CURLU_DEFAULT_PORT : 0) == CURLUE_OK && strlen(text) < size)
        snprintf(ret_text, size, "%s", text);
    curl_free(text);
}

bool url_same_origin(const char *a, const char *b)
{
    own_url CURLU *first = curl_url(), *second = curl_url();
    static const CURLUPart parts[] = {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT};
    if (!first || !second || curl_url_set(first, CURLUPART_URL, a, 0) || curl_url_set(second, CURLUPART_URL, b, 0))
        return false;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char left[512], right[512];
        get_part(first, parts[i], left, sizeof left);
        get_part(second, parts[i], right, sizeof right);
        if (!*left || strcasecmp(left, right) != 0)
            return false;
    }
    return true;
}

int url_resolve(const char *base, const char *location, bool insecure, char ret_url[static HTTP_URL_SIZE], struct err *err)
{
    own_url CURLU *url = curl_url();
    char before[8], after[8];
    if (!url || curl_url_set(url, CURLUPART_URL, base, 0))
        return err_say(err, EINVAL, "'%.100s' is no URL", base);
    get_part(url, CURLUPART_SCHEME, before, sizeof before);
    if (curl_url_set(url, CURLUPART_URL, location, 0))
        return err_say(err, EINVAL, "the registry leads to '%.100s', which is no URL", location);
    get_part(url, CURLUPART_SCHEME, after, sizeof after);
    if (strcmp(after, "https") != 0 && (strcmp(after, "http") != 0 || (!strcmp(before, "https") && !insecure)))
        return err_say(err, EINVAL, "the registry leads from https to '%.100s': the option 'insecure' would allow that", location);
    get_part(url, CURLUPART_URL, ret_url, HTTP_URL_SIZE);
    return *ret_url ? 0 : err_say(err, EINVAL, "the registry leads to a URL of more than %d bytes", HTTP_URL_SIZE - 1);
}

int url_add_query(char url[static HTTP_URL_SIZE], const char *name, const char *value, struct err *err)
{
    own_url CURLU *parsed = curl_url();
    own_free char *pair = NULL;
    if (asprintf(&pair, "%s=%s", name, value) < 0)
        return err_set(err, ENOMEM, "URL");
    if (!parsed || curl_url_set(parsed, CURLUPART_URL, url, 0) ||
        curl_url_set(parsed, CURLUPART_QUERY, pair, CURLU_APPENDQUERY | CURLU_URLENCODE))
        return err_say(err, EINVAL, "'%.100s' is no URL", url);
    char *text = NULL;
    bool fits = curl_url_get(parsed, CURLUPART_URL, &text, 0) == CURLUE_OK && strlen(text) < HTTP_URL_SIZE;
    if (fits)
        snprintf(url, HTTP_URL_SIZE, "%s", text);
    curl_free(text);
    return fits ? 0 : err_say(err, EINVAL, "a URL of the registry is too long");
}
