/* References of images, as docker reads them. */
#include "cmocka_all.h"

#include <errno.h>
#include <string.h>

#include "image/image.h"

#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const struct {
    const char *text, *full, *brief;
} good[] = {
    {"debian", "docker.io/library/debian:latest", "debian:latest"},
    {"debian:12", "docker.io/library/debian:12", "debian:12"},
    {"me/app", "docker.io/me/app:latest", "me/app:latest"},
    {"library/debian", "docker.io/library/debian:latest", "debian:latest"},
    {"docker.io/debian", "docker.io/library/debian:latest", "debian:latest"},
    {"index.docker.io/debian:1", "docker.io/library/debian:1", "debian:1"},
    {"docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"},
    {"docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"},
    {"localhost/x", "localhost/x:latest", "localhost/x:latest"},
    {"localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"},
    {"localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"},
    {"127.0.0.1:5000/a/b:c_D.e-f", "127.0.0.1:5000/a/b:c_D.e-f", "127.0.0.1:5000/a/b:c_D.e-f"},
    {"[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"},
    {"quay.io/a_b/c__d/e---f.g", "quay.io/a_b/c__d/e---f.g:latest", "quay.io/a_b/c__d/e---f.g:latest"},
    {"debian@sha256:" HEX, "docker.io/library/debian@sha256:" HEX, "debian@sha256:" HEX},
    {"r.io/x:1@sha256:" HEX, "r.io/x:1@sha256:" HEX, "r.io/x:1@sha256:" HEX},
};

static void good_references_have_one_full_form(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct image_ref ref, again;
        char text[IMAGE_REF_SIZE], brief[IMAGE_REF_SIZE], twice[IMAGE_REF_SIZE];
        assert_int_equal(image_ref_parse(good[i].text, &ref, NULL), 0);
        image_ref_format(&ref, text);
        assert_string_equal(text, good[i].full);
        image_ref_short(&ref, brief);
        assert_string_equal(brief, good[i].brief);
        assert_int_equal(image_ref_parse(brief, &again, NULL), 0);
        image_ref_format(&again, twice);
        assert_string_equal(twice, text);
    }
}

static void others_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"", ":", "/", "@", "a/", "/a", "a//b", "Debian", "me/App", "a:", "a:b:c", "-a", "a-", "a..b",
        "a.-b", "a___b", "a._b", "_a", "a_", "a:.b", "a:b/c", "a b", "a\nb", "a?x", "a@", "a@sha256:12", "a@md5:" HEX,
        "a@sha256:" HEX "0", "a@sha256:" HEX "@sha256:" HEX, "r.io:/x", "r.io:123456/x", "r.io:x/y", ".r.io/x", "r.io./x", "r..io",
        "r..io/x", "a.-b.io/x", "a-.io/x", "[a..b]:5/x", "[]:5/x", "[::1/x", "[:/x:5]/x", "http://r.io/x", "user@r.io/x",
        "r.io/../x", "r.io/x#y", "r.io/%2e%2e/x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct image_ref ref;
        struct err err = {0};
        if (image_ref_parse(bad[i], &ref, &err) != -EINVAL)
            fail_msg("'%s' was taken", bad[i]);
        assert_non_null(strstr(err.message, "no image reference"));
    }
}

static void long_parts_are_refused(void **state)
{
    (void)state;
    char text[1024];
    struct image_ref ref;
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = '\0';
    assert_int_equal(image_ref_parse(text, &ref, NULL), -EINVAL);
    text[255] = '\0';
    assert_int_equal(image_ref_parse(text, &ref, NULL), -EINVAL); /* with "library/" in front it is too long */
    text[247] = '\0';
    assert_int_equal(image_ref_parse(text, &ref, NULL), 0);
    memcpy(text, "r.io/x:", 7);
    memset(text + 7, 'a', 200);
    text[7 + 128] = '\0';
    assert_int_equal(image_ref_parse(text, &ref, NULL), 0);
    text[7 + 128] = 'a';
    text[7 + 129] = '\0';
    assert_int_equal(image_ref_parse(text, &ref, NULL), -EINVAL);
}

static void digests(void **state)
{
    (void)state;
    assert_true(image_digest_valid("sha256:" HEX));
    assert_false(image_digest_valid("sha256:" HEX "0"));
    assert_false(image_digest_valid("sha256:"));
    assert_false(image_digest_valid("SHA256:" HEX));
    assert_false(image_digest_valid("sha256:../../../456789abcdef0123456789abcdef0123456789abcdef0123456789ab"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_references_have_one_full_form),
        cmocka_unit_test(others_are_refused),
        cmocka_unit_test(long_parts_are_refused),
        cmocka_unit_test(digests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
