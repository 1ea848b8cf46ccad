/* volume create, snapshot, clone, resize, export, import, ls, rm, inspect */
#include <errno.h>

#include "base/size.h"
#include "polder/cli.h"
#include "polder/commands.h"
#include "polder/documents.h"
#include "polder/transfer.h"

/* Ids of instances. */
static void show_users(const json_t *document, const json_t *member, char *text, size_t size)
{
    size_t at, used = 0;
    json_t *user;
    (void)document;
    json_array_foreach(member, at, user) {
        used += (size_t)snprintf(text + used, size - used, "%s%s", used ? " " : "", cli_text(user, "instance"));
        if (used >= size)
            return;
    }
}

static const struct cli_column columns[] = {
    {"NAME", "name", NULL, false},        {"SIZE", "size_bytes", cli_show_size, false}, {"FS", "fs", NULL, false},
    {"FORMAT", "format", NULL, true},     {"USED BY", "used_by", show_users, false},  {"CREATED", "created_at", cli_show_age, false},
    {NULL, NULL, NULL, false},
};

static const struct documents volumes = {"/v1/volumes", columns};

static int run_create(struct cli *cli, struct err *err)
{
    uint64_t size = UINT64_C(1) << 30;
    int r = cli_size(cli, "size", &size, err);
    if (r < 0)
        return r;
    return documents_create(cli, &volumes, json_pack("{s:s, s:I, s:s*}", "name", cli_operand(cli, 0), "size_bytes", (json_int_t)size,
                                                    "fs", cli_value(cli, "fs")), err);
}

static int run_resize(struct cli *cli, struct err *err)
{
    uint64_t size;
    if (!size_parse(cli_operand(cli, 1), 1, &size))
        return err_say(err, EINVAL, "'%s' is no size: a number and K, M, G or T, like 20G", cli_operand(cli, 1));
    return documents_act(cli, &volumes, "resize", json_pack("{s:I}", "size_bytes", (json_int_t)size), cli_operand(cli, 0), err);
}

/* snapshot and clone: POST {"name"} */
static int to_new_name(struct cli *cli, const char *verb, struct err *err)
{
    return documents_act(cli, &volumes, verb, json_pack("{s:s}", "name", cli_operand(cli, 1)), cli_operand(cli, 1), err);
}

static int run_snapshot(struct cli *cli, struct err *err) { return to_new_name(cli, "snapshot", err); }
static int run_clone(struct cli *cli, struct err *err) { return to_new_name(cli, "clone", err); }

static const char *format_of(const struct cli *cli)
{
    return cli_value(cli, "format") ? cli_value(cli, "format") : "qcow2";
}

static int run_export(struct cli *cli, struct err *err)
{
    char request[CLIENT_URL_MAX];
    const char *name = cli_operand(cli, 0);
    int r = client_path(request, err, "/v1/volumes/%s/export?format=%s", name, format_of(cli));
    if (r == 0)
        r = transfer_get(cli, request, cli_operand(cli, 1) ? cli_operand(cli, 1) : "-", err);
    return cli_suggest(cli, volumes.path, name, r, err);
}

static int run_import(struct cli *cli, struct err *err)
{
    char request[CLIENT_URL_MAX];
    int r = client_path(request, err, "/v1/volumes/%s/import?format=%s", cli_operand(cli, 1), format_of(cli));
    return r < 0 ? r : transfer_put(cli, request, cli_operand(cli, 0), cli_operand(cli, 1), err);
}

static int run_ls(struct cli *cli, struct err *err) { return documents_list(cli, &volumes, err); }
static int run_inspect(struct cli *cli, struct err *err) { return documents_inspect(cli, &volumes, err); }
static int run_rm(struct cli *cli, struct err *err) { return documents_remove(cli, &volumes, err); }

static const struct option_spec create_options[] = {
    {"size", "SIZE", "how much it can hold; it takes room as it fills (default: 1G)", NULL, NULL},
    {"fs", "FS", "its file system (default: ext4)", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static const struct option_spec export_options[] = {
    {"f,format", "qcow2|raw", "of the image (default: qcow2)", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static const struct option_spec import_options[] = {
    {"f,format", "qcow2|raw|vmdk|vhd|vhdx|vdi", "of the image (default: qcow2); it is never guessed", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command volume_commands[] = {
    {.name = "create", .operands = "NAME", .summary = "make a volume", .options = create_options, .run = run_create,
     .examples = "polder volume create --size 20G data\npolder run -it -v data:/srv debian\n"},
    {.name = "ls", .operands = "", .summary = "list volumes", .run = run_ls},
    {.name = "snapshot", .operands = "VOLUME SNAPSHOT", .summary = "keep the state of a volume", .run = run_snapshot},
    {.name = "clone", .operands = "VOLUME NEW-NAME", .summary = "make a copy of a volume", .run = run_clone},
    {.name = "resize", .operands = "VOLUME SIZE", .summary = "make a volume larger", .run = run_resize},
    {.name = "export", .operands = "VOLUME [FILE]", .summary = "write a volume as a disk image",
     .options = export_options, .run = run_export},
    {.name = "import", .operands = "FILE VOLUME", .summary = "make a volume from a disk image",
     .options = import_options, .run = run_import},
    {.name = "inspect", .operands = "VOLUME", .summary = "show all about a volume, as JSON", .run = run_inspect},
    {.name = "rm", .operands = "VOLUME...", .summary = "remove volumes and what they hold", .run = run_rm},
    {.name = NULL},
};
