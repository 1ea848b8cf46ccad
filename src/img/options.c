/* The options of all commands; a command says which of them it knows. Each setter puts one value into img_options. */
#include <errno.h>
#include <string.h>

#include "img/img.h"

#define TEXT_SETTER(field)                                                                                   \
    static int set_##field(void *target, const char *value, struct err *err)                                 \
    {                                                                                                        \
        (void)err;                                                                                           \
        ((struct img_options *)target)->field = value;                                                       \
        return 0;                                                                                            \
    }
#define FLAG_SETTER(field)                                                                                   \
    static int set_##field(void *target, const char *value, struct err *err)                                 \
    {                                                                                                        \
        (void)value, (void)err;                                                                              \
        ((struct img_options *)target)->field = true;                                                        \
        return 0;                                                                                            \
    }
TEXT_SETTER(format)
TEXT_SETTER(output_format)
TEXT_SETTER(settings)
TEXT_SETTER(backing)
TEXT_SETTER(backing_format)
TEXT_SETTER(socket)
TEXT_SETTER(port)
TEXT_SETTER(bind)
TEXT_SETTER(export)
TEXT_SETTER(snapshot)
TEXT_SETTER(bitmap)
TEXT_SETTER(tls_psk)
TEXT_SETTER(tls_certs)
FLAG_SETTER(read_only)
TEXT_SETTER(granularity)
TEXT_SETTER(snapshot_create)
TEXT_SETTER(snapshot_apply)
TEXT_SETTER(snapshot_delete)
FLAG_SETTER(shrink)
FLAG_SETTER(keep)
FLAG_SETTER(full)
FLAG_SETTER(unsafe)
FLAG_SETTER(snapshot_list)
FLAG_SETTER(compress)
FLAG_SETTER(strict)
FLAG_SETTER(progress)
FLAG_SETTER(help)
FLAG_SETTER(version)
FLAG_SETTER(man)

#define BENCH_SETTER(field)                                                                                  \
    static int set_bench_##field(void *target, const char *value, struct err *err)                           \
    {                                                                                                        \
        (void)err;                                                                                           \
        ((struct img_options *)target)->bench.field = value;                                                 \
        return 0;                                                                                            \
    }
BENCH_SETTER(count)
BENCH_SETTER(depth)
BENCH_SETTER(size)
BENCH_SETTER(step)
BENCH_SETTER(offset)
BENCH_SETTER(flush_interval)
BENCH_SETTER(cache)

static int set_bench_write(void *target, const char *value, struct err *err)
{
    (void)value, (void)err;
    ((struct img_options *)target)->bench.write = true;
    return 0;
}

static int set_bench_random(void *target, const char *value, struct err *err)
{
    (void)value, (void)err;
    ((struct img_options *)target)->bench.random = true;
    return 0;
}

static int set_repair(void *target, const char *value, struct err *err)
{
    if (strcmp(value, "leaks") != 0 && strcmp(value, "all") != 0)
        return err_say(err, EINVAL, "'%s' cannot be repaired, give leaks or all", value);
    ((struct img_options *)target)->repair = value;
    return 0;
}

static int add_step(void *target, enum qcow2_bitmap_action action, const char *source, struct err *err)
{
    struct img_options *options = target;
    if (options->bitmap_step_count == IMG_STEPS_MAX)
        return err_say(err, EINVAL, "more than %d steps", IMG_STEPS_MAX);
    options->bitmap_steps[options->bitmap_step_count++] = (struct img_bitmap_step){action, source};
    return 0;
}

#define STEP_SETTER(name, action, source)                                                                    \
    static int set_bitmap_##name(void *target, const char *value, struct err *err)                           \
    {                                                                                                        \
        (void)value;                                                                                         \
        return add_step(target, action, source, err);                                                        \
    }
STEP_SETTER(add, QCOW2_BITMAP_ADD, NULL)
STEP_SETTER(remove, QCOW2_BITMAP_REMOVE, NULL)
STEP_SETTER(clear, QCOW2_BITMAP_CLEAR, NULL)
STEP_SETTER(enable, QCOW2_BITMAP_ENABLE, NULL)
STEP_SETTER(disable, QCOW2_BITMAP_DISABLE, NULL)
STEP_SETTER(merge, QCOW2_BITMAP_MERGE, value)

static int set_output(void *target, const char *value, struct err *err)
{
    if (strcmp(value, "human") != 0 && strcmp(value, "json") != 0)
        return err_say(err, EINVAL, "unknown output '%s', give human or json", value);
    ((struct img_options *)target)->json = value[0] == 'j';
    return 0;
}

static int set_key(void *target, const char *value, struct err *err)
{
    block_key_free(((struct img_options *)target)->key);
    return block_key_read(value, &((struct img_options *)target)->key, err);
}

static int set_target_key(void *target, const char *value, struct err *err)
{
    block_key_free(((struct img_options *)target)->target_key);
    return block_key_read(value, &((struct img_options *)target)->target_key, err);
}

static int set_allow_backing(void *target, const char *value, struct err *err)
{
    struct img_options *options = target;
    if (options->allow_count == IMG_DIRS_MAX)
        return err_say(err, EINVAL, "more than %d folders", IMG_DIRS_MAX);
    options->allow_dirs[options->allow_count++] = value;
    return 0;
}

int img_operand(void *target, const char *value, struct err *err)
{
    struct img_options *options = target;
    if (options->operand_count == IMG_OPERANDS_MAX)
        return err_say(err, EINVAL, "'%s' is one argument too many", value);
    options->operands[options->operand_count++] = value;
    return 0;
}

const struct option_spec img_option_table[] = {
    {"", NULL, "Images", NULL, NULL},
    {"format", "FORMAT", "-f: format of the image: raw, qcow2, luks; read only: vmdk, vhd, vhdx, vdi",
     "Without it, the end of the name (.qcow2, .luks, .vmdk, ...) says what an image is when its header agrees; else it is raw "
     "when its header is not qcow2's. Any other must be stated: whoever wrote a raw disk could have written such a header.", set_format},
    {"output-format", "FORMAT", "-O: format of the new image (default: raw)", NULL, set_output_format},
    {"options", "NAME=VALUE,...", "-o: settings of the new image",
     "qcow2: compat (0.10, 1.1), cluster_size, refcount_bits, extended_l2, lazy_refcounts, compression_type (zlib, zstd), "
     "backing_file, backing_fmt, data_file, data_file_raw, encrypt.format (luks), encrypt.iterations, preallocation (off, "
     "metadata, falloc, full). raw: preallocation (off, falloc, full). luks: version (2, 1), sector_size, key_bits (512, 256), "
     "iterations (of key derivation).", set_settings},
    {"backing", "PATH", "-b: backing file of the image, relative to the image's folder", NULL, set_backing},
    {"backing-format", "FORMAT", "-F: the backing file's format", NULL, set_backing_format},
    {"key", "FILE", "key of an encrypted image: all bytes of FILE; - is standard input",
     "A line end in the file is part of the key. info and check need none.", set_key},
    {"target-key", "FILE", "key of the new image (convert), of the second one (compare)", NULL, set_target_key},
    {"allow-backing", "DIR", "backing and data files that an image names may lie in DIR; repeat for more",
     "Those in the image's own folder and below are allowed anyway.", set_allow_backing},

    {"", NULL, "Work", NULL, NULL},
    {"compress", NULL, "-c: compress what is written (qcow2)", NULL, set_compress},
    {"repair", "leaks|all", "-r: repair what is found: leaked clusters only, or reference counts as well", NULL, set_repair},
    {"strict", NULL, "-s: images of different sizes, or with other places allocated, differ", NULL, set_strict},
    {"list", NULL, "-l: list snapshots (default)", NULL, set_snapshot_list},
    {"create", "NAME", "-c: take a snapshot", NULL, set_snapshot_create},
    {"apply", "NAME", "-a: make the disk what it was at a snapshot, given by name or id", NULL, set_snapshot_apply},
    {"delete", "NAME", "-d: delete a snapshot, given by name or id", NULL, set_snapshot_delete},
    {"shrink", NULL, "resize: the disk may become smaller: what is behind its new end is lost", NULL, set_shrink},
    {"keep", NULL, "-d: commit: leave the image as it is instead of emptying it", NULL, set_keep},
    {"unsafe", NULL, "-u: rebase: change the name only, whatever that does to what the disk reads", NULL, set_unsafe},
    {"full", NULL, "backup: copy everything", NULL, set_full},
    {"add", NULL, "bitmap: make one, enabled and clean", NULL, set_bitmap_add},
    {"remove", NULL, "bitmap: remove it", NULL, set_bitmap_remove},
    {"clear", NULL, "bitmap: forget what it recorded", NULL, set_bitmap_clear},
    {"enable", NULL, "bitmap: let it record writes", NULL, set_bitmap_enable},
    {"disable", NULL, "bitmap: let it record nothing more", NULL, set_bitmap_disable},
    {"merge", "SOURCE", "bitmap: add what the bitmap SOURCE recorded, of this image or of the one given by -b", NULL,
     set_bitmap_merge},
    {"granularity", "SIZE", "-g: bytes that one bit of a new bitmap stands for (default: a cluster, 4K to 64K)", NULL,
     set_granularity},
    {"count", "N", "-c: bench: requests in all (default: 75000)", NULL, set_bench_count},
    {"depth", "N", "-d: bench: requests at a time (default: 64)", NULL, set_bench_depth},
    {"buffer-size", "SIZE", "-s: bench: bytes of a request (default: 4096)", NULL, set_bench_size},
    {"step-size", "SIZE", "-S: bench: from one request's start to the next one's (default: the bytes of a request)", NULL,
     set_bench_step},
    {"offset", "SIZE", "-o: bench: where the first request begins (default: 0)", NULL, set_bench_offset},
    {"random", NULL, "bench: anywhere, the same places in each run", NULL, set_bench_random},
    {"write", NULL, "-w: bench: write, whatever is on the disk", NULL, set_bench_write},
    {"flush-interval", "N", "bench: a flush after each N writes", NULL, set_bench_flush_interval},
    {"cache", "writeback|none", "-t: bench: with or without the host's page cache (default: writeback)", NULL, set_bench_cache},
    {"progress", NULL, "-p: show progress", NULL, set_progress},
    {"output", "human|json", "how results are printed (default: human)", NULL, set_output},

    {"", NULL, "Serving (NBD)", NULL, NULL},
    {"socket", "PATH", "listen on a unix socket", "It is made for the user alone, and removed at the end.", set_socket},
    {"port", "N", "listen on a TCP port (default: 10809)", NULL, set_port},
    {"bind", "ADDRESS", "address of the TCP port (default: 127.0.0.1)",
     "Without --tls-psk or --tls-certs everybody who reaches it can read and write the images.", set_bind},
    {"read-only", NULL, "clients cannot write", NULL, set_read_only},
    {"export", "NAME", "name of the export (default: the image's, without its folders); for one image", NULL, set_export},
    {"snapshot", "NAME", "serve an internal snapshot, given by name or id, read-only (qcow2)", NULL, set_snapshot},
    {"bitmap", "NAME", "serve: offer a dirty bitmap as context qemu:dirty-bitmap:NAME; backup: copy what it recorded",
     "After a backup the bitmap starts anew.", set_bitmap},
    {"tls-psk", "FILE", "only clients that know a key of this file, over TLS", "Lines USER:HEXKEY, as psktool writes them.",
     set_tls_psk},
    {"tls-certs", "DIR", "only clients with a certificate of the CA in this folder, over TLS",
     "The folder has ca-cert.pem, server-cert.pem and server-key.pem.", set_tls_certs},

    {"", NULL, "Information", NULL, NULL},
    {"help", NULL, "show this help", NULL, set_help},
    {"version", NULL, "show the version", NULL, set_version},
    {"man", NULL, "print the man page (roff)", NULL, set_man},
    {NULL, NULL, NULL, NULL, NULL},
};
