/* create: a new image, and the settings that qcow2 knows. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/own.h"
#include "base/size.h"
#include "img/img.h"

static int parse_switch(const char *name, const char *value, bool *ret_on, struct err *err)
{
    if (strcmp(value, "on") != 0 && strcmp(value, "off") != 0)
        return err_say(err, EINVAL, "-o %s: '%s' is neither on nor off", name, value);
    *ret_on = value[1] == 'n';
    return 0;
}

static int parse_number(const char *name, const char *value, uint64_t *ret_number, struct err *err)
{
    if (!size_parse(value, 1, ret_number) || *ret_number > UINT32_MAX)
        return err_say(err, EINVAL, "-o %s: '%s' is not a number", name, value);
    return 0;
}

static int set_compat(struct qcow2_create *create, const char *value, struct err *err)
{
    create->version = strcmp(value, "0.10") == 0 || strcmp(value, "v2") == 0 ? 2 : 3;
    if (create->version == 3 && strcmp(value, "1.1") != 0 && strcmp(value, "v3") != 0)
        return err_say(err, EINVAL, "-o compat: '%s' is neither 0.10 nor 1.1", value);
    return 0;
}

static int set_compression(struct qcow2_create *create, const char *value, struct err *err)
{
    create->zstd = strcmp(value, "zstd") == 0;
    if (!create->zstd && strcmp(value, "zlib") != 0)
        return err_say(err, EINVAL, "-o compression_type: '%s' is neither zlib nor zstd", value);
    return 0;
}

/* One "name=value". `value` lives as long as the settings' text. */
static int set_one(struct qcow2_create *create, const char *name, const char *value, struct err *err)
{
    const struct {
        const char *name;
        bool *flag;
    } flags[] = {{"extended_l2", &create->extended_l2},
                 {"lazy_refcounts", &create->lazy_refcounts},
                 {"data_file_raw", &create->data_file_raw}};
    const struct {
        const char *name, **text;
    } texts[] = {{"backing_file", &create->backing}, {"backing_fmt", &create->backing_format}, {"data_file", &create->data_file}};
    uint64_t number = 0;
    int r;
    for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++)
        if (strcmp(name, flags[i].name) == 0)
            return parse_switch(name, value, flags[i].flag, err);
    for (unsigned i = 0; i < sizeof texts / sizeof *texts; i++)
        if (strcmp(name, texts[i].name) == 0) {
            *texts[i].text = value;
            return 0;
        }
    if (strcmp(name, "preallocation") == 0)
        return strcmp(value, "off") == 0 ? 0 : err_say(err, ENOTSUP, "-o preallocation: only off is there; images grow by writes");
    if (strcmp(name, "compat") == 0)
        return set_compat(create, value, err);
    if (strcmp(name, "compression_type") == 0)
        return set_compression(create, value, err);
    if (strcmp(name, "cluster_size") == 0) {
        r = parse_number(name, value, &number, err);
        create->cluster_size = (uint32_t)number;
        return r;
    }
    if (strcmp(name, "refcount_bits") == 0) {
        r = parse_number(name, value, &number, err);
        create->refcount_bits = (unsigned)number;
        return r;
    }
    return err_say(err, EINVAL, "-o: unknown setting '%s', see polder-img --man", name);
}

static int parse_settings(char *text, struct qcow2_create *create, struct err *err)
{
    for (char *word; (word = strsep(&text, ",")) != NULL;) {
        char *equals = strchr(word, '=');
        if (!*word)
            continue;
        if (equals)
            *equals = '\0';
        int r = set_one(create, word, equals ? equals + 1 : "on", err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int make_raw(const char *path, uint64_t size, struct err *err)
{
    own_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, errno, "'%s'", path);
    if (fcntl(fd, F_OFD_SETLK, &lock) < 0 && (errno == EAGAIN || errno == EACCES))
        return err_say(err, EBUSY, "'%s' is in use by another machine or tool", path);
    if (S_ISREG(st.st_mode) && (size > INT64_MAX || ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)size) < 0))
        return err_set(err, errno ? errno : EFBIG, "'%s'", path);
    return 0;
}

/* The size of a disk that gets none: its backing file's. */
static int backing_size(const struct img_options *options, const struct qcow2_create *create, uint64_t *ret_size, struct err *err)
{
    own_free char *path = img_beside(create->path, create->backing);
    struct img_image image;
    int r = path ? img_open(options, path, create->backing_format, true, false, NULL, &image, err) : err_set(err, ENOMEM, "create");
    if (r < 0)
        return r;
    if (*ret_size == UINT64_MAX)
        *ret_size = image.node->size;
    img_close(&image);
    return 0;
}

int img_make(const struct img_options *options, const char *format, const char *path, uint64_t size, struct err *err)
{
    struct qcow2_create create = {.path = path, .version = 3, .cluster_size = 65536, .refcount_bits = 16};
    own_free char *text = strdup(options->settings ? options->settings : "");
    if (!text)
        return err_set(err, ENOMEM, "create");
    if (strcmp(format, "raw") == 0) {
        if (*text || options->backing)
            return err_say(err, EINVAL, "a raw image has no settings and no backing file; say -f qcow2");
        return size == UINT64_MAX ? err_say(err, EINVAL, "a raw image needs a size") : make_raw(path, size, err);
    }
    int r = parse_settings(text, &create, err);
    if (r < 0)
        return r;
    if (options->backing)
        create.backing = options->backing;
    if (options->backing_format)
        create.backing_format = options->backing_format;
    if (create.backing && create.backing_format)
        r = backing_size(options, &create, &size, err);
    if (r == 0 && size == UINT64_MAX)
        return err_say(err, EINVAL, "an image without a backing file needs a size");
    create.size = size;
    return r < 0 ? r : qcow2_create(&create, err);
}

static int run_create(const struct img_options *options, struct err *err)
{
    uint64_t size = UINT64_MAX;
    const char *format = options->format ? options->format : "raw";
    int r = options->operand_count > 1 ? img_parse_size(options->operands[1], &size, err) : 0;
    if (r == 0)
        r = img_guess(options->operands[0], format, &format, err);
    return r < 0 ? r : img_make(options, format, options->operands[0], size, err);
}

static const struct option_letter letters[] = {{'f', "format"}, {'o', "options"}, {'b', "backing"}, {'F', "backing-format"}, {0, NULL}};

const struct img_command img_create = {
    .name = "create",
    .usage = "[-f FORMAT] [-o SETTINGS] [-b PATH -F FORMAT] IMAGE [SIZE]",
    .summary = "make an empty image",
    .accepts = " format options backing backing-format allow-backing ",
    .letters = letters,
    .operands_min = 1,
    .operands_max = 2,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_create,
};
