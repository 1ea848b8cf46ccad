/* What programs that polderd starts find in their environment: not what a shell, its user's tools or a secret in it left there. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "polderd/polderd.h"

#define SYSTEM_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Names, or their beginnings where they end with "_". */
static const char *const kept[] = {"HOME", "TMPDIR", "TZ", "XDG_", "POLDER_", "NOTIFY_SOCKET", "LISTEN_", "http_proxy",
                                   "https_proxy", "no_proxy", "SSL_CERT_", "ASAN_", "LSAN_", "UBSAN_", "TSAN_"};

static bool is_kept(const char *variable)
{
    size_t len = strcspn(variable, "=");
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        size_t want = strlen(kept[i]);
        if (kept[i][want - 1] == '_' ? !strncmp(variable, kept[i], want) : len == want && !strncmp(variable, kept[i], len))
            return true;
    }
    return false;
}

int environment_clean(struct err *err)
{
    char **to = environ;
    for (char **from = environ; from && *from; from++) {
        if (is_kept(*from))
            *to++ = *from;
    }
    if (to)
        *to = NULL;
    return setenv("PATH", SYSTEM_PATH, 1) < 0 ? err_set(err, errno, "environment") : 0;
}
