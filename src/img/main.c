/* polder-img: makes, examines, converts and repairs disk images. The first argument names the command. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "img/img.h"

#define IMG_TABLE_MAX 80 /* rows of img_option_table */

static const struct img_command *const commands[] = {
    &img_backup, &img_bench, &img_bitmap, &img_check,  &img_commit, &img_compare,  &img_convert,
    &img_create, &img_info,  &img_map,    &img_rebase, &img_resize, &img_serve,    &img_snapshot, NULL,
};

static const char *const sections[] = {
    "Commands",
    "backup (--full [--bitmap NAME] [-c] | --bitmap NAME -b PREVIOUS) [-f FORMAT] [-o SETTINGS] IMAGE NEW: copy all of the disk, or "
    "what changed since the backup PREVIOUS, on which the new one then stands. To restore one: convert it.\n\n"
    "bench [-f FORMAT] [-c COUNT] [-d DEPTH] [-s SIZE] [-S STEP | --random] [-o OFFSET] [-w] [--flush-interval N] [-t none] IMAGE: how "
    "fast is it? -w overwrites the disk. -f memory or -f null with a size for IMAGE measures polder-img alone.\n\n"
    "bitmap (--add | --remove | --clear | --enable | --disable | --merge SOURCE)... [-b PATH [-F FORMAT]] [-g GRANULARITY] "
    "[-f FORMAT] IMAGE NAME: bitmaps of what was written, inside of the image.\n\n"
    "check [-f FORMAT] [-r leaks|all] [--output json] IMAGE: is the image sound? Repairs it if asked to.\n\n"
    "commit [-f FORMAT] [-b BASE] [-d] IMAGE: put what the image changed into its backing file, and empty it; with -b into BASE "
    "further down, or with -d, without emptying it. Refused while it has snapshots,"
    " which read from the backing file, too.\n\n"
    "compare [-f FORMAT] [-F FORMAT] [-s] IMAGE1 IMAGE2: do both read the same?\n\n"
    "convert [-f FORMAT] [-O FORMAT] [-o SETTINGS] [-c] [-p] [--key FILE] [--target-key FILE] IMAGE NEW: copy into a new image.\n\n"
    "create [-f FORMAT] [-o SETTINGS] [-b PATH -F FORMAT] [--key FILE] IMAGE [SIZE]: make an empty image.\n\n"
    "info [-f FORMAT] [--output json] IMAGE: what an image is.\n\n"
    "map [-f FORMAT] [--output json] IMAGE: where its data lies.\n\n"
    "rebase [-f FORMAT] [-u] -b BASE [-F FORMAT] IMAGE: give the image another backing file (-b '': none) and copy into it what "
    "differs, so that it reads the same. Refused while it has snapshots, which would not, unless -u changes the name alone.\n\n"
    "resize [-f FORMAT] [--shrink] IMAGE [+|-]SIZE: make the disk larger or smaller.\n\n"
    "serve [-f FORMAT] [--socket PATH | --port N] [--read-only] IMAGE...: let others read and write images over the network "
    "(NBD).\n\n"
    "snapshot [-f FORMAT] [-l | -c NAME | -a NAME | -d NAME] IMAGE: snapshots inside of the image.",
    "Exit status",
    "0: done; the image is sound; both images read the same.\n\n"
    "1: failed, one line on standard error says why; compare: the images differ.\n\n"
    "2: the command line is wrong (check: 1); check: the image is damaged; compare: failed.\n\n"
    "3: check: the image has leaked clusters and no other fault.\n\n"
    "63: check: the format has nothing to check.",
    "Examples",
    "polder-img create -f qcow2 disk.qcow2 20G\n\n"
    "polder-img create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2\n\n"
    "polder-img create -f luks --key FILE disk.luks 20G\n\n"
    "polder-img convert -f vmdk -O qcow2 disk.vmdk disk.qcow2\n\n"
    "polder-img serve --socket disk.sock disk.qcow2\n\n"
    "polder-img convert -O qcow2 -c -o compression_type=zstd disk.raw disk.qcow2",
    NULL,
};

static struct option_program program = {
    .name = "polder-img",
    .version = POLDER_VERSION,
    .summary = "make, examine, convert and repair disk images",
    .description =
        "polder-img handles disk images in the formats raw, qcow2 and luks while no machine uses them, and reads and converts vmdk, vhd, "
        "vhdx and vdi. Commands, options and JSON output are those of qemu-img where both have the thing.\n\n"
        "An image can name a backing file and a data file. They are opened only when they lie in the image's own folder or "
        "below it, or in a folder given by --allow-backing.",
    .usage = "COMMAND [OPTION...] IMAGE...",
    .options = img_option_table,
    .sections = sections,
    .operand = img_operand,
};

static bool accepted(const struct img_command *command, const char *name, size_t len)
{
    for (const char *at = command->accepts; (at = strstr(at, name)) != NULL; at++)
        if (at > command->accepts && at[-1] == ' ' && at[len] == ' ')
            return true;
    return false;
}

/* Only the options that the command knows, below the headings that have one. */
static void print_command_help(const struct img_command *command)
{
    struct option_spec table[IMG_TABLE_MAX] = {0};
    unsigned count = 0;
    char name[32];
    for (const struct option_spec *spec = img_option_table; spec->name && count + 1 < IMG_TABLE_MAX; spec++) {
        bool heading = !*spec->name;
        if (count && heading && !*table[count - 1].name)
            count--;
        if (heading || strcmp(spec->name, "help") == 0 || accepted(command, spec->name, strlen(spec->name)))
            table[count++] = *spec;
    }
    table[count] = (struct option_spec){0};
    snprintf(name, sizeof name, "%s %s", program.name, command->name);
    struct option_program part = {.name = name, .summary = command->summary, .usage = command->usage, .options = table};
    option_print_help(&part, stdout);
}

static void print_help(void)
{
    option_print_help(&program, stdout);
    printf("\nCommands:\n");
    for (unsigned i = 0; commands[i]; i++)
        printf("  %-9s %-24s %s\n", commands[i]->name, commands[i]->summary, commands[i]->usage);
}

/* Options of other commands; the parser knows all of them. */
static int check_accepted(const struct img_command *command, int argc, char **argv, struct err *err)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strncmp(argv[i], "--", 2) != 0)
            continue;
        char name[32];
        size_t len = strcspn(argv[i] + 2, "=");
        if (len >= sizeof name)
            continue;
        memcpy(name, argv[i] + 2, len);
        name[len] = '\0';
        if (!accepted(command, name, len))
            return err_say(err, EINVAL, "option '--%s' is not for %s: polder-img %s %s", name, command->name, command->name,
                           command->usage);
    }
    return 0;
}

static int parse(const struct img_command *command, struct img_options *options, int argc, char **argv, struct err *err)
{
    program.letters = command->letters;
    int r = option_parse(&program, options, argc, argv, err);
    if (r < 0 || options->help)
        return r;
    if (options->operand_count < command->operands_min || options->operand_count > command->operands_max)
        return err_say(err, EINVAL, "wrong number of arguments: polder-img %s %s", command->name, command->usage);
    return check_accepted(command, argc, argv, err);
}

static int fail(int status, const struct err *err)
{
    fprintf(stderr, "polder-img: %s\n", err->message);
    return status;
}

static void free_keys(struct img_options *options)
{
    block_key_free(options->key);
    block_key_free(options->target_key);
    options->key = options->target_key = NULL;
}

static int run(const struct img_command *command, int argc, char **argv)
{
    struct img_options options = {0};
    struct err err = {0};
    int r = parse(command, &options, argc, argv, &err);
    if (r < 0 || options.help)
        free_keys(&options);
    if (r < 0)
        return fail(command->usage_status, &err);
    if (options.help) {
        print_command_help(command);
        return 0;
    }
    r = command->run(&options, &err);
    free_keys(&options);
    if (r < 0 && !err.code)
        err_set(&err, -r, "%s", command->name);
    return r < 0 ? fail(command->error_status, &err) : r;
}

static int without_command(int argc, char **argv)
{
    struct img_options options = {0};
    struct err err = {0};
    if (option_parse(&program, &options, argc, argv, &err) < 0)
        return fail(IMG_STATUS_USAGE, &err);
    if (options.man)
        option_print_man(&program, stdout);
    else if (options.version)
        printf("polder-img %s\n", program.version);
    else
        print_help();
    return options.help || options.man || options.version ? 0 : IMG_STATUS_USAGE;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argv[1][0] == '-')
        return without_command(argc, argv);
    for (unsigned i = 0; commands[i]; i++)
        if (strcmp(commands[i]->name, argv[1]) == 0)
            return run(commands[i], argc - 1, argv + 1);
    fprintf(stderr, "polder-img: unknown command '%s', see polder-img --help\n", argv[1]);
    return IMG_STATUS_USAGE;
}
