/* Images of Debian, made by mmdebstrap: its tar is the one layer. It installs with the ids of the image's files, as root or in a
 * user namespace, and removes what it unpacked, also when it is told to end. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/child.h"
#include "image/image_impl.h"
#include "image/rootfs.h"

#define PACKAGES_MAX 1000
#define NAME_MAX_BYTES 100
#define SOURCES_DEB822 "/etc/apt/sources.list.d/debian.sources"
#define SOURCES_LIST "/etc/apt/sources.list"

/* What may stand in a suite's or a package's name ("g++", "libc6:amd64", "bookworm-backports"): nothing that a shell, apt or
 * mmdebstrap would take for more. */
static int check_name(const char *what, const char *name, struct err *err)
{
    size_t len = strlen(name);
    bool fine = len > 0 && len <= NAME_MAX_BYTES && isalnum((unsigned char)name[0]);
    for (size_t i = 0; fine && i < len; i++)
        fine = isalnum((unsigned char)name[i]) || strchr("+-.:_", name[i]);
    return fine ? 0 : err_say(err, EINVAL, "'%.60s' is not the name of a Debian %s", name, what);
}

static int check_mirror(const char *mirror, struct err *err)
{
    static const char characters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:/%@";
    bool url = strncmp(mirror, "http://", 7) == 0 || strncmp(mirror, "https://", 8) == 0;
    if (url && strlen(mirror) < 400 && strspn(mirror, characters) == strlen(mirror))
        return 0;
    return err_say(err, EINVAL, "'%.100s' is not the http or https address of a Debian mirror", mirror);
}

static int check(const struct image_debian *debian, struct err *err)
{
    int r = check_name("suite", debian->suite, err);
    size_t count = 0;
    for (const char *const *package = debian->packages; r == 0 && package && *package; package++)
        r = ++count > PACKAGES_MAX ? err_say(err, E2BIG, "more than %d packages", PACKAGES_MAX)
                                   : check_name("package", *package, err);
    return r == 0 && debian->mirror ? check_mirror(debian->mirror, err) : r;
}

/* "--include=a,b", or NULL without packages; the caller frees it. */
static int include_option(const struct image_debian *debian, char **ret_option, struct err *err)
{
    size_t size = 0;
    char *option = NULL;
    FILE *out = debian->packages && *debian->packages ? open_memstream(&option, &size) : NULL;
    if (!debian->packages || !*debian->packages)
        return 0;
    if (!out)
        return err_set(err, ENOMEM, "mmdebstrap");
    fputs("--include=", out);
    for (size_t i = 0; debian->packages[i]; i++)
        fprintf(out, "%s%s", i ? "," : "", debian->packages[i]);
    if (fclose(out) != 0) {
        free(option);
        return err_set(err, ENOMEM, "mmdebstrap");
    }
    *ret_option = option;
    return 0;
}

/* The host's own apt sources (*ret_fd, for mmdebstrap's standard input), so that its mirror is used; or none for Debian's
 * default: -1. */
static const char *open_sources(const struct image_debian *debian, int *ret_fd)
{
    struct stat st;
    if (debian->mirror)
        return debian->mirror;
    static const char *const files[] = {SOURCES_DEB822, SOURCES_LIST};
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
        *ret_fd = open(files[i], O_RDONLY | O_CLOEXEC);
        if (*ret_fd >= 0 && fstat(*ret_fd, &st) == 0 && st.st_size > 0)
            return "-";
        if (*ret_fd >= 0)
            close(TAKE_FD(*ret_fd));
    }
    return NULL;
}

struct build {
    const struct image_progress *progress;
    char what[CHILD_LINE_MAX];
    unsigned long long lines;
};

/* Its messages ("I: installing essential packages...") are what is going on. */
static void show_line(void *context, const char *line)
{
    struct build *build = context;
    if (!build->progress || !build->progress->report || strncmp(line, "I: ", 3) != 0)
        return;
    snprintf(build->what, sizeof build->what, "build: %s", line + 3);
    build->progress->report(build->progress->context, build->what, ++build->lines, 0);
}

static bool is_cancelled(void *context)
{
    const struct image_progress *progress = ((const struct build *)context)->progress;
    return progress && progress->cancelled && progress->cancelled(progress->context);
}

static int run_mmdebstrap(const struct image_debian *debian, int out_fd, const struct image_progress *progress, struct err *err)
{
    own_free char *include = NULL;
    own_fd int sources_fd = -1;
    int r = include_option(debian, &include, err);
    if (r < 0)
        return r;
    const char *sources = open_sources(debian, &sources_fd);
    const char *argv[16] = {"mmdebstrap", "--variant=minbase", "--format=tar", "--aptopt=APT::Install-Recommends \"false\"",
                            "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
                            "--dpkgopt=path-include=/usr/share/doc/*/copyright", "--dpkgopt=path-exclude=/usr/share/locale/*"};
    unsigned count = 8;
    if (include)
        argv[count++] = include;
    argv[count++] = debian->suite;
    argv[count++] = "-";
    if (sources)
        argv[count++] = sources;
    struct build build = {.progress = progress};
    struct child child = {
        CHILD_INIT, .argv = argv, .line = show_line, .cancelled = is_cancelled, .context = &build};
    child.in_fd = sources_fd;
    child.out_fd = out_fd;
    r = child_run(&child, NULL, err);
    return r < 0 ? err_ctx(err, "build Debian %s", debian->suite) : 0;
}

/* A file without a name on the store's file system: it goes with its descriptor. */
static int open_spool(struct image_store *store, struct err *err)
{
    int fd = openat(image_store_dir_fd(store), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    return fd < 0 ? err_set(err, errno, "make a file in '%s'", image_store_dir(store)) : fd;
}

int image_build_debian(struct image_store *store, const char *ref, const struct image_debian *debian,
                       const struct image_progress *progress, char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    struct image_ref parsed;
    int r = image_ref_parse(ref, &parsed, err);
    if (r == 0)
        r = check(debian, err);
    if (r < 0)
        return r;
    own_fd int spool = open_spool(store, err);
    if (spool < 0)
        return spool;
    r = run_mmdebstrap(debian, spool, progress, err);
    if (r == 0 && lseek(spool, 0, SEEK_SET) < 0)
        r = err_set(err, errno, "build Debian %s", debian->suite);
    if (r < 0)
        return r;
    const struct image_layer_source layer = {.fd = spool};
    json_t *config = json_pack("{s:{s:[s], s:[s], s:{s:s}}}", "config", "Cmd", "bash", "Env",
                               "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "Labels",
                               "org.opencontainers.image.version", debian->suite);
    r = config ? image_add(store, ref, &layer, 1, config, NULL, progress, ret_digest, err) : err_set(err, ENOMEM, "build");
    json_decref(config);
    return r;
}
