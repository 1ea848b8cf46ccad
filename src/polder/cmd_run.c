/* run, create */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "polder/cli.h"
#include "polder/commands.h"
#include "polder/session.h"
#include "polder/spec.h"
#include "polder/text.h"

static const struct option_spec instance_options[] = {
    {"", NULL, "The instance", NULL, NULL},
    {"name", "NAME", "its name (default: polderd makes one up)", NULL, NULL},
    {"i,interactive", NULL, "give it standard input", NULL, NULL},
    {"t,tty", NULL, "give its command a terminal", NULL, NULL},
    {"rm", NULL, "remove it when it has ended", NULL, NULL},
    {"restart", "no|on-failure|always", "start it again when its command ends (default: no)", NULL, NULL},
    {"label", "NAME=VALUE", "a label; repeat for more", NULL, NULL},
    {"pull", "missing|always|never", "whether to pull the image (default: missing)", NULL, NULL},

    {"", NULL, "What runs in it", NULL, NULL},
    {"e,env", "NAME[=VALUE]", "a variable; without a value, the one it has here; repeat for more", NULL, NULL},
    {"env-file", "FILE", "variables, one a line", NULL, NULL},
    {"w,workdir", "DIR", "folder that the command runs in", NULL, NULL},
    {"u,user", "USER[:GROUP]", "user that the command runs as", NULL, NULL},
    {"entrypoint", "PROGRAM", "instead of the image's", "\"\" for none.", NULL},
    {"hostname", "NAME", "its host name (default: its name)", NULL, NULL},
    {"user-data", "FILE", "cloud-init's user data, for disk images", NULL, NULL},

    {"", NULL, "What it has", NULL, NULL},
    {"m,memory", "SIZE", "memory: 256M (the default), 2G", NULL, NULL},
    {"cpus", "N", "virtual CPUs (default: 1)", NULL, NULL},
    {"cpu-weight", "N", "its share when CPUs are scarce, from 1 to 10000 (default: 100)", NULL, NULL},
    {"disk", "SIZE", "writable disk, thin (default: 10G)", NULL, NULL},
    {"v,volume", "VOLUME:/PATH[:ro]", "mount a volume; repeat for more", NULL, NULL},
    {"network", "NETWORK[,address=A][,mac=M]", "join a network, or none (default: default); repeat for more", NULL, NULL},
    {"p,publish", "[ADDRESS:]PORT:PORT[/udp]", "a port of this host and the instance's it leads to; repeat for more", NULL, NULL},
    {"engine", "auto|kvm|jit", "how guest code runs (default: auto)", NULL, NULL},
    {"kind", "microvm|vm", "vm: from a disk image with a system of its own", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static const struct option_spec run_options[] = {
    {"d,detach", NULL, "leave it to itself and print its name", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* "debian:12" -> "debian": for a hint only. */
static int add_build_hint(const char *image, int r, struct err *err)
{
    size_t used = strlen(err->message), len = strcspn(image, ":@");
    snprintf(err->message + used, sizeof err->message - used, "; or build it here: polder image build --debian bookworm %.*s", (int)len,
             image);
    return r;
}

static int pull(struct cli *cli, const char *image, struct err *err)
{
    json_t *answer = NULL;
    int r = cli_post(cli, json_pack("{s:s}", "ref", image), &answer, err, "/v1/images/pull");
    if (r == 0)
        r = cli_finish(cli, answer, NULL, err);
    return r < 0 && r != -ECANCELED && r != -ECONNREFUSED ? add_build_hint(image, r, err) : r;
}

/* The image is there, or is fetched, as --pull says. */
static int need_image(struct cli *cli, const char *image, struct err *err)
{
    const char *when = cli_value(cli, "pull");
    when = when ? when : "missing";
    bool never = strcmp(when, "never") == 0;
    if (strcmp(when, "always") == 0)
        return pull(cli, image, err);
    if (strcmp(when, "missing") != 0 && !never)
        return err_say(err, EINVAL, "--pull: '%s' is none of missing, always, never", when);
    int r = cli_get(cli, NULL, err, "/v1/images/inspect?ref=%s", image);
    if (r != -ENOENT || never)
        return r;
    if (!cli->quiet)
        fprintf(stderr, "image %s is not here: pulling it\n", image);
    return pull(cli, image, err);
}

/* *ret_instance: its document. */
static int make(struct cli *cli, bool start, json_t **ret_instance, struct err *err)
{
    json_t *spec = NULL, *answer = NULL;
    int r = spec_create(cli, &spec, err);
    if (r == 0)
        r = need_image(cli, cli_operand(cli, 0), err);
    if (r < 0) {
        json_decref(spec);
        return r;
    }
    json_object_set_new(spec, "start", json_boolean(start));
    r = cli_post(cli, spec, &answer, err, "/v1/instances");
    return r < 0 ? r : cli_finish(cli, answer, ret_instance, err);
}

static int show(const struct cli *cli, const json_t *instance)
{
    if (cli->output == OUTPUT_JSON)
        return cli_print_document(cli, instance);
    text_print(stdout, cli_text(instance, "name"), "");
    putchar('\n');
    return 0;
}

static int run_create(struct cli *cli, struct err *err)
{
    json_t *instance = NULL;
    int r = make(cli, false, &instance, err);
    if (r == 0)
        r = show(cli, instance);
    json_decref(instance);
    return r;
}

/* --rm: polderd removes it; this waits until the name is free again, so that the next command finds it so. */
static void wait_removed(struct cli *cli, const char *name)
{
    struct err ignored;
    json_t *answer = NULL;
    if (cli_delete(cli, &answer, &ignored, "/v1/instances/%s?force=1", name) < 0)
        return;
    cli->quiet = true;
    (void)!cli_finish(cli, answer, NULL, &ignored);
}

static int attach_to(struct cli *cli, const char *name, struct err *err)
{
    char path[CLIENT_URL_MAX];
    int status = 0;
    struct session session = {.path = path, .leave = "\x10\x11", .use_stdin = cli_has(cli, "interactive"), .tty = cli_has(cli, "tty")};
    int r = client_path(path, err, "/v1/instances/%s/attach?history=1&stdin=%d&tty=%d", name, session.use_stdin, session.tty);
    if (r == 0)
        r = session_run(cli, &session, &status, err);
    if (r < 0)
        return r;
    if (status == SESSION_DETACHED) {
        fprintf(stderr, "\nleft %s, which runs on; back to it: polder attach %s\n", name, name);
        return 0;
    }
    if (cli_has(cli, "rm"))
        wait_removed(cli, name);
    return status;
}

/* A machine with a system of its own has no main process: its serial port is what there is to see. */
static int attach_to_vm(struct cli *cli, const json_t *instance, struct err *err)
{
    const char *name = cli_text(instance, "name");
    if (cli_has(cli, "tty"))
        return session_console(cli, name, err);
    if (!cli->quiet)
        fprintf(stderr, "%s starts its own system; see it: polder logs -f %s; log in: polder console %s\n", name, name, name);
    return show(cli, instance);
}

static int attach(struct cli *cli, const json_t *instance, struct err *err)
{
    if (cli_has(cli, "detach"))
        return show(cli, instance);
    bool vm = strcmp(cli_text(instance, "spec.kind"), "vm") == 0;
    return vm ? attach_to_vm(cli, instance, err) : attach_to(cli, cli_text(instance, "name"), err);
}

static int run_run(struct cli *cli, struct err *err)
{
    json_t *instance = NULL;
    if (cli_has(cli, "tty") && cli_has(cli, "interactive") && !cli_has(cli, "detach") && !isatty(STDIN_FILENO))
        return err_say(err, EINVAL, "-t wants a terminal, and standard input is none: leave -t out");
    int r = make(cli, true, &instance, err);
    if (r == 0)
        r = attach(cli, instance, err);
    json_decref(instance);
    if (r == -EPIPE) { /* it ran */
        fprintf(stderr, "polder: %s; polder ps -a shows what became of it\n", err->message);
        return CLI_STATUS_LOST;
    }
    return r;
}

const struct command run_commands[] = {
    {.name = "run", .operands = "IMAGE [COMMAND [ARG...]]", .summary = "make an instance from an image and run it", .rest = true,
     .own_status = true, .options = run_options, .shared = instance_options, .run = run_run,
     .description = "Pulls the image if it is not there. Without -d, polder shows what the command prints and ends with its status.\n\n"
                    "With -it, your terminal is the command's; Ctrl-P Ctrl-Q leaves it running.\n\n"
                    "A guest that reboots runs its command anew in the same machine, whatever --restart says: that is for the command's "
                    "end.",
     .examples = "polder run -it debian\n"
                 "polder run --rm debian cat /etc/os-release\n"
                 "polder run -d --name web -p 8080:80 -m 512M --cpus 2 --network lan -v data:/srv -e MODE=fast nginx\n"},
    {.name = "create", .operands = "IMAGE [COMMAND [ARG...]]", .summary = "make an instance without starting it", .rest = true,
     .shared = instance_options, .run = run_create,
     .examples = "polder create --name web -p 8080:80 nginx\npolder start web\n"},
    {.name = NULL},
};
