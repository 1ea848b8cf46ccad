/* Fuzz target: references, login challenges and the URLs that registries lead to. */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "image/registry_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is taken has one full form, which is taken again. */
static void use_reference(const char *text)
{
    struct image_ref ref, again;
    char full[IMAGE_REF_SIZE], brief[IMAGE_REF_SIZE], twice[IMAGE_REF_SIZE];
    if (image_ref_parse(text, &ref, NULL) < 0)
        return;
    image_ref_format(&ref, full);
    image_ref_short(&ref, brief);
    assert(!strpbrk(full, " \t\r\n?#%\\\"") && !strstr(full, "/.."));
    assert(image_ref_parse(full, &again, NULL) == 0);
    image_ref_format(&again, twice);
    assert(!strcmp(full, twice));
    assert(image_ref_parse(brief, &again, NULL) == 0);
    image_ref_format(&again, twice);
    assert(!strcmp(full, twice));
}

static void use_challenge(const char *text)
{
    struct auth_challenge challenge;
    if (!auth_challenge_parse(text, &challenge))
        return;
    assert(challenge.scheme != AUTH_NONE && (challenge.scheme != AUTH_BEARER || challenge.realm[0]));
    assert(strlen(challenge.realm) < sizeof challenge.realm && strlen(challenge.service) < sizeof challenge.service);
    assert(!strpbrk(challenge.realm, "\r\n"));
}

static void use_location(const char *text)
{
    char url[HTTP_URL_SIZE];
    if (url_resolve("https://registry.example/v2/x", text, false, url, NULL) < 0)
        return;
    assert(!strncmp(url, "https://", 8));
    if (url_add_query(url, "digest", "sha256:0", NULL) == 0)
        assert(!strncmp(url, "https://", 8) && strstr(url, "digest="));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[HTTP_URL_SIZE];
    size_t length = size < sizeof text ? size : sizeof text - 1;
    memcpy(text, data, length);
    text[length] = '\0';
    use_reference(text);
    use_challenge(text);
    use_location(text);
    return 0;
}
