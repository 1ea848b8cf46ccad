/* References of images. Grammar: distribution's "reference" package and distribution-spec v1.1 "Pulling manifests"; docker's
 * defaults for what a short one leaves out. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "image/image.h"

#define DEFAULT_REGISTRY "docker.io"
#define DEFAULT_NAMESPACE "library/"
#define DEFAULT_TAG "latest"

bool image_digest_valid(const char *text)
{
    return !strncmp(text, "sha256:", 7) && strspn(text + 7, "0123456789abcdef") == 64 && text[71] == '\0';
}

static bool is_lower_alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

/* Parts of lower-case letters and digits, with ".", "_", "__" or dashes between them, never at an end; "/" between parts. */
static bool repository_valid(const char *text)
{
    char before = '/';
    for (const char *at = text; *at; before = *at++) {
        if (is_lower_alnum(*at))
            continue;
        bool second_underscore = *at == '_' && before == '_' && at - text >= 2 && at[-2] != '_';
        bool separates = strchr("._/", *at) && is_lower_alnum(before);
        bool dash = *at == '-' && (is_lower_alnum(before) || before == '-');
        if (!second_underscore && !separates && !dash)
            return false;
    }
    return is_lower_alnum(before);
}

static bool tag_valid(const char *text)
{
    static const char first[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
    static const char rest[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
    return *text && strchr(first, *text) && text[strspn(text, rest)] == '\0';
}

/* Moves `length` bytes of a part out; false when it does not fit. */
static bool take(char *ret, size_t size, const char *from, size_t length)
{
    if (length >= size)
        return false;
    memcpy(ret, from, length);
    ret[length] = '\0';
    return true;
}

/* Labels of letters and digits, with dashes inside, with a dot between them. */
static bool host_valid(const char *text, size_t length)
{
    char before = '.';
    for (size_t i = 0; i < length; before = text[i++])
        if (!isalnum((unsigned char)text[i]) && (before == '.' || (text[i] == '.' && before == '-') || !strchr(".-", text[i])))
            return false;
    return isalnum((unsigned char)before);
}

/* An IPv6 address between brackets. */
static bool address_valid(const char *text, size_t length)
{
    char address[INET6_ADDRSTRLEN];
    struct in6_addr binary;
    return length > 2 && text[length - 1] == ']' && take(address, sizeof address, text + 1, length - 2) &&
           inet_pton(AF_INET6, address, &binary) == 1;
}

/* "name", "name:port", "1.2.3.4:port", "[::1]:port". */
static bool registry_valid(const char *text)
{
    bool bracket = *text == '[';
    size_t host = bracket ? strcspn(text, "]") : strcspn(text, ":");
    if (bracket && text[host])
        host++;
    if (bracket ? !address_valid(text, host) : !host_valid(text, host))
        return false;
    if (!text[host])
        return true;
    size_t digits = strspn(text + host + 1, "0123456789");
    return text[host] == ':' && digits >= 1 && digits <= 5 && !text[host + 1 + digits];
}

/* What stands before the first slash is a registry if it could not be a part of a docker.io repository. */
static size_t registry_length(const char *text, size_t end)
{
    size_t slash = strcspn(text, "/");
    bool named = slash < end && (memchr(text, '.', slash) || memchr(text, ':', slash) ||
                                 (slash == strlen("localhost") && !strncmp(text, "localhost", slash)));
    return named ? slash : 0;
}

static bool split_name(const char *text, size_t end, struct image_ref *ref)
{
    size_t host = registry_length(text, end);
    bool bare = !host && !memchr(text, '/', end);
    if (host && !take(ref->registry, sizeof ref->registry, text, host))
        return false;
    if (!host || !strcmp(ref->registry, "index.docker.io")) {
        bare = bare || (host && !memchr(text + host + 1, '/', end - host - 1));
        snprintf(ref->registry, sizeof ref->registry, DEFAULT_REGISTRY);
    } else if (!strcmp(ref->registry, DEFAULT_REGISTRY)) {
        bare = !memchr(text + host + 1, '/', end - host - 1);
    }
    size_t start = host ? host + 1 : 0, prefix = bare ? strlen(DEFAULT_NAMESPACE) : 0;
    memcpy(ref->repository, DEFAULT_NAMESPACE, prefix);
    return take(ref->repository + prefix, sizeof ref->repository - prefix, text + start, end - start);
}

int image_ref_parse(const char *text, struct image_ref *ret_ref, struct err *err)
{
    struct image_ref ref = {0};
    size_t length = strcspn(text, "@"), colon = length;
    while (colon && text[colon - 1] != ':' && text[colon - 1] != '/')
        colon--;
    bool tagged = colon && text[colon - 1] == ':';
    bool fits = split_name(text, tagged ? colon - 1 : length, &ref);
    if (tagged)
        fits = fits && take(ref.tag, sizeof ref.tag, text + colon, length - colon) && tag_valid(ref.tag);
    if (text[length])
        fits = fits && image_digest_valid(text + length + 1) && take(ref.digest, sizeof ref.digest, text + length + 1, 71);
    if (!fits || !registry_valid(ref.registry) || !repository_valid(ref.repository))
        return err_say(err, EINVAL, "'%.100s' is no image reference: write [REGISTRY/]NAME[:TAG][@sha256:DIGEST], NAME in lower case",
                       text);
    if (!ref.tag[0] && !ref.digest[0])
        snprintf(ref.tag, sizeof ref.tag, DEFAULT_TAG);
    *ret_ref = ref;
    return 0;
}

static void append_version(const struct image_ref *ref, char *text)
{
    size_t length = strlen(text);
    snprintf(text + length, IMAGE_REF_SIZE - length, "%s%s%s%s", ref->tag[0] ? ":" : "", ref->tag,
             ref->digest[0] ? "@" : "", ref->digest);
}

void image_ref_format(const struct image_ref *ref, char ret_text[static IMAGE_REF_SIZE])
{
    snprintf(ret_text, IMAGE_REF_SIZE, "%s/%s", ref->registry, ref->repository);
    append_version(ref, ret_text);
}

void image_ref_short(const struct image_ref *ref, char ret_text[static IMAGE_REF_SIZE])
{
    size_t official = strlen(DEFAULT_NAMESPACE);
    const char *name = ref->repository;
    bool hub = !strcmp(ref->registry, DEFAULT_REGISTRY);
    if (hub && !strncmp(name, DEFAULT_NAMESPACE, official) && !strchr(name + official, '/'))
        name += official;
    bool bare = hub && !registry_length(name, strlen(name)); /* else it would be taken for a registry */
    snprintf(ret_text, IMAGE_REF_SIZE, "%s%s%s", bare ? "" : ref->registry, bare ? "" : "/", name);
    append_version(ref, ret_text);
}
