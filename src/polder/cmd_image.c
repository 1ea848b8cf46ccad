/* image build, pull, push, import, export, ls, rm, inspect, tag, prune */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "polder/cli.h"
#include "polder/commands.h"
#include "polder/text.h"
#include "polder/transfer.h"

static const struct cli_column columns[] = {
    {"IMAGE", "ref", NULL, false},
    {"DIGEST", "digest", cli_show_digest, false},
    {"SIZE", "size_bytes", cli_show_size, false},
    {"CREATED", "created_at", cli_show_age, false},
    {"KIND", "kind", NULL, true},
    {"ARCHITECTURE", "architecture", NULL, true},
    {NULL, NULL, NULL, false},
};

static int run_ls(struct cli *cli, struct err *err)
{
    json_t *answer = NULL;
    int r = cli_get(cli, &answer, err, "/v1/images");
    if (r == 0)
        r = cli_print_list(cli, cli_array(answer), columns);
    json_decref(answer);
    return r;
}

static int run_inspect(struct cli *cli, struct err *err)
{
    json_t *answer = NULL;
    int r = cli_get(cli, &answer, err, "/v1/images/inspect?ref=%s", cli_operand(cli, 0));
    if (r == 0)
        r = cli_print_document(cli, answer);
    json_decref(answer);
    return r;
}

static int run_rm(struct cli *cli, struct err *err)
{
    int r = 0;
    for (size_t at = 0; r == 0 && cli_operand(cli, at); at++) {
        json_t *answer = NULL;
        r = cli_delete(cli, &answer, err, "/v1/images?ref=%s", cli_operand(cli, at));
        if (r == 0)
            r = cli_finish(cli, answer, NULL, err);
        if (r == 0)
            cli_say(cli, "%s", cli_operand(cli, at));
    }
    return r;
}

/* POST to /v1/images/VERB, and the image's name when it is done. `body` is taken. */
static int work(struct cli *cli, const char *verb, json_t *body, const char *name, struct err *err)
{
    json_t *answer = NULL;
    int r = cli_post(cli, body, &answer, err, "/v1/images/%s", verb);
    if (r == 0)
        r = cli_finish(cli, answer, NULL, err);
    if (r == 0)
        cli_say(cli, "%s", name);
    return r;
}

/* The password is read from a file or asked for, never taken from the command line. */
static int read_password(const struct cli *cli, char *password, size_t size, struct err *err)
{
    const char *path = cli_value(cli, "password-file");
    FILE *file = path ? fopen(path, "re") : NULL;
    if (path && !file)
        return err_set(err, errno, "password file '%s'", path);
    if (!path && !isatty(STDIN_FILENO))
        return err_say(err, EINVAL, "--user wants --password-file FILE where there is no terminal to ask");
    if (path) {
        bool read = fgets(password, (int)size, file) != NULL;
        fclose(file);
        password[read ? strcspn(password, "\r\n") : 0] = '\0';
        return 0;
    }
    const char *typed = getpass("Password: ");
    snprintf(password, size, "%s", typed ? typed : "");
    return 0;
}

static int transfer_with_registry(struct cli *cli, const char *verb, struct err *err)
{
    char password[256] = "";
    const char *ref = cli_operand(cli, 0), *user = cli_value(cli, "user");
    int r = user ? read_password(cli, password, sizeof password, err) : 0;
    if (r < 0)
        return r;
    json_t *body = json_pack("{s:s}", "ref", ref);
    if (cli_operand(cli, 1))
        json_object_set_new(body, "target", json_string(cli_operand(cli, 1)));
    if (cli_has(cli, "insecure"))
        json_object_set_new(body, "insecure", json_true());
    if (user) {
        json_object_set_new(body, "username", json_string(user));
        json_object_set_new(body, "password", json_string(password));
    }
    explicit_bzero(password, sizeof password);
    return work(cli, verb, body, ref, err);
}

static int run_pull(struct cli *cli, struct err *err) { return transfer_with_registry(cli, "pull", err); }
static int run_push(struct cli *cli, struct err *err) { return transfer_with_registry(cli, "push", err); }

/* "bookworm" or "bookworm,nginx,curl" and --package. */
static int run_build(struct cli *cli, struct err *err)
{
    char suite[1024], *rest = suite;
    const char *given = cli_value(cli, "debian"), *package;
    json_t *packages = json_array();
    if (!given) {
        json_decref(packages);
        return err_say(err, EINVAL, "what to build it from: --debian SUITE, like --debian bookworm");
    }
    snprintf(suite, sizeof suite, "%s", given);
    const char *name = strsep(&rest, ",");
    for (char *one; (one = strsep(&rest, ",")) != NULL;)
        json_array_append_new(packages, json_string(one));
    for (size_t at = 0; (package = args_next(&cli->args, "package", &at)) != NULL;)
        json_array_append_new(packages, json_string(package));
    json_t *body = json_pack("{s:s, s:s, s:o}", "ref", cli_operand(cli, 0), "suite", name, "packages", packages);
    return work(cli, "build", body, cli_operand(cli, 0), err);
}

static int run_tag(struct cli *cli, struct err *err)
{
    json_t *body = json_pack("{s:s, s:s}", "ref", cli_operand(cli, 0), "target", cli_operand(cli, 1));
    return work(cli, "tag", body, cli_operand(cli, 1), err);
}

static int run_prune(struct cli *cli, struct err *err)
{
    json_t *answer = NULL, *result = NULL;
    char size[64] = "nothing";
    int r = cli_post(cli, NULL, &answer, err, "/v1/images/prune");
    if (r == 0)
        r = cli_finish(cli, answer, &result, err);
    if (r == 0 && cli->output == OUTPUT_JSON)
        r = cli_print_document(cli, result);
    else if (r == 0) {
        cli_show_size(result, cli_member(result, "bytes"), size, sizeof size);
        cli_say(cli, "freed %s", size);
    }
    json_decref(result);
    return r;
}

/* The format by the name's end; NULL: an archive. */
static const char *disk_format(const char *path)
{
    static const char *const ends[][2] = {{".qcow2", "qcow2"}, {".raw", "raw"}, {".img", "raw"}, {".vmdk", "vmdk"},
                                          {".vhd", "vhd"}, {".vhdx", "vhdx"}, {".vdi", "vdi"}};
    const char *end = strrchr(path, '.');
    for (size_t i = 0; end && i < sizeof ends / sizeof *ends; i++)
        if (strcmp(end, ends[i][0]) == 0)
            return ends[i][1];
    return NULL;
}

static int run_import(struct cli *cli, struct err *err)
{
    char request[CLIENT_URL_MAX];
    const char *file = cli_operand(cli, 0), *ref = cli_operand(cli, 1), *cmdline = cli_value(cli, "cmdline");
    const char *format = cli_value(cli, "disk") ? cli_value(cli, "disk") : disk_format(file);
    int r;
    if (!ref && format)
        return err_say(err, EINVAL, "a disk has no name of its own: polder image import %.200s NAME", file);
    if (!format && cmdline)
        return err_say(err, EINVAL, "--cmdline is for disks: say the disk's format with --disk");
    if (format)
        r = client_path(request, err, cmdline ? "/v1/images/import?ref=%s&disk=%s&cmdline=%s" : "/v1/images/import?ref=%s&disk=%s",
                        ref, format, cmdline);
    else
        r = client_path(request, err, ref ? "/v1/images/import?ref=%s" : "/v1/images/import", ref);
    return r < 0 ? r : transfer_put(cli, request, file, ref ? ref : "imported", err);
}

static int run_export(struct cli *cli, struct err *err)
{
    char request[CLIENT_URL_MAX];
    int r = client_path(request, err, "/v1/images/export?ref=%s", cli_operand(cli, 0));
    return r < 0 ? r : transfer_get(cli, request, cli_operand(cli, 1) ? cli_operand(cli, 1) : "-", err);
}

static const struct option_spec registry_options[] = {
    {"insecure", NULL, "HTTP, or TLS without a trusted certificate", NULL, NULL},
    {"user", "NAME", "log in to the registry", NULL, NULL},
    {"password-file", "FILE", "its first line is the password; without, it is asked for", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static const struct option_spec build_options[] = {
    {"debian", "SUITE[,PACKAGE...]", "from Debian's packages: bookworm, trixie, sid", NULL, NULL},
    {"package", "PACKAGE", "a further package; repeat for more", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static const struct option_spec import_options[] = {
    {"disk", "FORMAT", "FILE is a disk: raw, qcow2, vmdk, vhd, vhdx, vdi", "Without: as the name's end says.", NULL},
    {"cmdline", "TEXT", "the command line of the disk's kernel", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command image_commands[] = {
    {.name = "ls", .operands = "", .summary = "list images", .run = run_ls},
    {.name = "pull", .operands = "IMAGE", .summary = "fetch an image from a registry", .options = registry_options, .run = run_pull},
    {.name = "push", .operands = "IMAGE [NEW-NAME]", .summary = "send an image to a registry, as itself or as another",
     .options = registry_options, .run = run_push},
    {.name = "build", .operands = "IMAGE", .summary = "make an image", .options = build_options, .run = run_build,
     .examples = "polder image build --debian bookworm debian\npolder image build --debian bookworm,nginx-light web\n"},
    {.name = "import", .operands = "FILE [IMAGE]", .summary = "take an image from an archive or a disk image", .options = import_options,
     .run = run_import,
     .description = "FILE is an OCI layout or docker archive in a tar file, or a disk (raw, qcow2) with a system of its own; \"-\" is "
                    "standard input.",
     .examples = "polder image import alpine.tar alpine\npolder image import disk.qcow2 my-system\n"},
    {.name = "export", .operands = "IMAGE [FILE]", .summary = "write an image as an archive (OCI layout)", .run = run_export},
    {.name = "tag", .operands = "IMAGE NEW-NAME", .summary = "give an image a further name", .run = run_tag},
    {.name = "inspect", .operands = "IMAGE", .summary = "show all about an image, as JSON", .run = run_inspect},
    {.name = "rm", .operands = "IMAGE...", .summary = "remove images", .run = run_rm},
    {.name = "prune", .operands = "", .summary = "remove what no image needs any more", .run = run_prune},
    {.name = NULL},
};
