/* create: a new image, and the settings that qcow2 knows. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/own.h"
#include "base/size.h"
#include "block/lock.h"
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

static int set_encryption(struct qcow2_create *create, const char *value, struct err *err)
{
    create->encrypt = true;
    return strcmp(value, "luks") == 0 ? 0 : err_say(err, EINVAL, "-o encrypt.format: only luks is written, not '%s'", value);
}

static int set_luks(void *target, const char *name, const char *value, struct err *err)
{
    struct luks_create *create = target;
    const struct {
        const char *name;
        unsigned *number;
    } numbers[] = {{"version", &create->version},
                   {"sector_size", &create->sector_size},
                   {"key_bits", &create->key_bits},
                   {"iterations", &create->iterations}};
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        uint64_t number;
        if (strcmp(name, numbers[i].name) != 0)
            continue;
        int r = parse_number(name, value, &number, err);
        if (r == 0)
            *numbers[i].number = (unsigned)number;
        return r;
    }
    return err_say(err, EINVAL, "-o: luks has no setting '%s', see polder-img --man", name);
}

struct making {
    struct qcow2_create create;
    bool preallocate;
    enum qcow2_preallocation preallocation;
};

static int set_preallocation(struct making *making, const char *value, struct err *err)
{
    static const char *const modes[] = {[QCOW2_PREALLOCATE_METADATA] = "metadata",
                                        [QCOW2_PREALLOCATE_SPACE] = "falloc",
                                        [QCOW2_PREALLOCATE_FULL] = "full"};
    making->preallocate = strcmp(value, "off") != 0;
    for (unsigned i = 0; i < sizeof modes / sizeof *modes; i++)
        if (strcmp(value, modes[i]) == 0) {
            making->preallocation = (enum qcow2_preallocation)i;
            return 0;
        }
    return making->preallocate ? err_say(err, EINVAL, "-o preallocation: '%s' is not off, metadata, falloc or full", value) : 0;
}

/* `value` lives as long as the settings' text. */
static int set_qcow2(void *target, const char *name, const char *value, struct err *err)
{
    struct making *making = target;
    struct qcow2_create *create = &making->create;
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
        return set_preallocation(making, value, err);
    if (strcmp(name, "compat") == 0)
        return set_compat(create, value, err);
    if (strcmp(name, "encrypt.format") == 0)
        return set_encryption(create, value, err);
    if (strcmp(name, "compression_type") == 0)
        return set_compression(create, value, err);
    if (strcmp(name, "cluster_size") == 0) {
        r = parse_number(name, value, &number, err);
        create->cluster_size = (uint32_t)number;
        return r;
    }
    if (strcmp(name, "encrypt.iterations") == 0) {
        r = parse_number(name, value, &number, err);
        create->luks_iterations = (uint32_t)number;
        return r;
    }
    if (strcmp(name, "refcount_bits") == 0) {
        r = parse_number(name, value, &number, err);
        create->refcount_bits = (unsigned)number;
        return r;
    }
    return err_say(err, EINVAL, "-o: unknown setting '%s', see polder-img --man", name);
}

/* "name=value,...", each given to `set`. */
static int parse_settings(char *text, int (*set)(void *target, const char *name, const char *value, struct err *err),
                          void *target, struct err *err)
{
    for (char *word; (word = strsep(&text, ",")) != NULL;) {
        char *equals = strchr(word, '=');
        if (!*word)
            continue;
        if (equals)
            *equals = '\0';
        int r = set(target, word, equals ? equals + 1 : "on", err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int set_raw(void *target, const char *name, const char *value, struct err *err)
{
    if (strcmp(name, "preallocation") != 0)
        return err_say(err, EINVAL, "a raw image has no setting '%s'; say -f qcow2", name);
    return set_preallocation(target, value, err);
}

static int write_zeroes(int fd, uint64_t size)
{
    own_free uint8_t *zeroes = calloc(1, IMG_CHUNK);
    if (!zeroes)
        return -ENOMEM;
    for (uint64_t at = 0; at < size;) {
        ssize_t n = pwrite(fd, zeroes, size - at < IMG_CHUNK ? size - at : IMG_CHUNK, (off_t)at);
        if (n < 0 && errno != EINTR)
            return -errno;
        at += n > 0 ? (uint64_t)n : 0;
    }
    return fdatasync(fd) < 0 ? -errno : 0;
}

static int make_raw(char *settings, const char *path, uint64_t size, struct err *err)
{
    struct making making = {0};
    int parsed = parse_settings(settings, set_raw, &making, err);
    if (parsed < 0)
        return parsed;
    own_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    struct stat st;
    if (making.preallocate && making.preallocation == QCOW2_PREALLOCATE_METADATA)
        return err_say(err, EINVAL, "-o preallocation: a raw image has no metadata; say falloc or full");
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, errno, "'%s'", path);
    if (block_lock(fd, false) < 0)
        return err_say(err, EBUSY, "'%s' is in use by another machine or tool", path);
    if (!S_ISREG(st.st_mode))
        return 0;
    if (size > INT64_MAX || ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)size) < 0)
        return err_set(err, errno ? errno : EFBIG, "'%s'", path);
    int r = 0;
    if (making.preallocate && making.preallocation == QCOW2_PREALLOCATE_FULL)
        r = write_zeroes(fd, size);
    else if (making.preallocate && size)
        r = fallocate(fd, 0, 0, (off_t)size) < 0 ? -errno : 0;
    return r < 0 ? err_set(err, -r, "'%s'", path) : 0;
}

struct preallocating {
    struct block_node *node;
    enum qcow2_preallocation mode;
    struct err *err;
};

static int preallocate(void *arg)
{
    struct preallocating *p = arg;
    return qcow2_preallocate(p->node, p->mode, p->err);
}

static int make_and_preallocate(const struct img_options *options, const struct making *making, struct err *err)
{
    struct img_image image = {0};
    if (making->preallocate && making->create.backing)
        return err_say(err, EINVAL, "preallocation and a backing file exclude each other");
    int r = qcow2_create(&making->create, err);
    if (r < 0 || !making->preallocate)
        return r;
    r = img_open(options, making->create.path, "qcow2", false, false, NULL, &image, err);
    if (r < 0)
        return r;
    struct preallocating p = {image.node, making->preallocation, err};
    r = block_run(image.ring, preallocate, &p);
    img_close(&image);
    return r;
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

static int make_luks(const struct img_options *options, char *settings, const char *path, uint64_t size, struct err *err)
{
    struct luks_create create = luks_create_default;
    int r = parse_settings(settings, set_luks, &create, err);
    return r < 0 ? r : luks_create(path, size, &create, options->key, err);
}

static int make_qcow2(const struct img_options *options, char *settings, const char *path, uint64_t size, struct err *err)
{
    struct making making = {
        .create = {.path = path, .version = 3, .cluster_size = 65536, .refcount_bits = 16, .key = options->key}};
    struct qcow2_create *create = &making.create;
    int r = parse_settings(settings, set_qcow2, &making, err);
    if (r < 0)
        return r;
    if (options->backing)
        create->backing = options->backing;
    if (options->backing_format)
        create->backing_format = options->backing_format;
    if (create->backing && create->backing_format)
        r = backing_size(options, create, &size, err);
    if (r == 0 && size == UINT64_MAX)
        return err_say(err, EINVAL, "an image without a backing file needs a size");
    create->size = size;
    return r < 0 ? r : make_and_preallocate(options, &making, err);
}

int img_make(const struct img_options *options, const char *format, const char *path, uint64_t size, struct err *err)
{
    own_free char *settings = strdup(options->settings ? options->settings : "");
    if (!settings)
        return err_set(err, ENOMEM, "create");
    if (strcmp(format, "qcow2") == 0)
        return make_qcow2(options, settings, path, size, err);
    if (options->backing)
        return err_say(err, EINVAL, "a %s image has no backing file; say -f qcow2", format);
    if (size == UINT64_MAX)
        return err_say(err, EINVAL, "a %s image needs a size", format);
    if (strcmp(format, "luks") == 0)
        return make_luks(options, settings, path, size, err);
    if (strcmp(format, "raw") != 0)
        return err_say(err, ENOTSUP, "format '%s' is only read; write raw, qcow2 or luks", format);
    return make_raw(settings, path, size, err);
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
    .usage = "[-f FORMAT] [-o SETTINGS] [-b PATH -F FORMAT] [--key FILE] IMAGE [SIZE]",
    .summary = "make an empty image",
    .accepts = " format key options backing backing-format allow-backing ",
    .letters = letters,
    .operands_min = 1,
    .operands_max = 2,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_create,
};
