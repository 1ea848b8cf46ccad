/* The options of polderd. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/option.h"
#include "control/fault.h"
#include "polderd/polderd.h"

#define TEXT_SETTER(member)                                                                                  \
    static int set_##member(void *target, const char *value, struct err *err)                                \
    {                                                                                                        \
        (void)err;                                                                                           \
        ((struct options *)target)->member = value;                                                          \
        return 0;                                                                                            \
    }
#define FLAG_SETTER(member)                                                                                  \
    static int set_##member(void *target, const char *value, struct err *err)                                \
    {                                                                                                        \
        (void)err;                                                                                           \
        (void)value;                                                                                         \
        ((struct options *)target)->member = true;                                                           \
        return 0;                                                                                            \
    }

TEXT_SETTER(state_dir)
TEXT_SETTER(socket_path)
TEXT_SETTER(run_dir)
TEXT_SETTER(guest_dir)
TEXT_SETTER(engine)
TEXT_SETTER(listen)
TEXT_SETTER(tls_cert)
TEXT_SETTER(tls_key)
TEXT_SETTER(tls_ca)
FLAG_SETTER(no_sandbox)
FLAG_SETTER(restore)
FLAG_SETTER(help)
FLAG_SETTER(version)
FLAG_SETTER(man)

static int set_log_level(void *target, const char *value, struct err *err)
{
    if (!log_level_parse(value, &((struct options *)target)->log_level))
        return err_say(err, EINVAL, "unknown level '%s': give error, warn, info or debug", value);
    return 0;
}

static int set_ratio(const char *value, double *ret_ratio, struct err *err)
{
    char *end;
    double ratio = strtod(value, &end);
    if (end == value || *end || !(ratio >= 0.1 && ratio <= 1000))
        return err_say(err, EINVAL, "'%s' is no ratio: give a number from 0.1 to 1000", value);
    *ret_ratio = ratio;
    return 0;
}

static int set_cpu_overcommit(void *target, const char *value, struct err *err)
{
    return set_ratio(value, &((struct options *)target)->cpu_overcommit, err);
}

static int set_memory_overcommit(void *target, const char *value, struct err *err)
{
    return set_ratio(value, &((struct options *)target)->memory_overcommit, err);
}

static int set_fault(void *target, const char *value, struct err *err)
{
    (void)target;
    return fault_arm(value, err);
}

static const struct option_spec specs[] = {
    {"", NULL, "Places", NULL, NULL},
    {"state-dir", "DIR", "where instances, images and volumes are kept",
     "For root /var/lib/polder, for others $XDG_DATA_HOME/polder or ~/.local/share/polder. One polderd a folder.",
     set_state_dir},
    {"restore", NULL, "go back to the store's last copy",
     "For a damaged store. The copy, backup.db in the state folder, is at most a minute old when polderd is killed, and current "
     "when it ends by itself. The damaged store stays as state.db.damaged. Instances that the copy does not know are ended, "
     "and their folders moved to lost/; volumes it does not know are taken in.",
     set_restore},
    {"run-dir", "DIR", "where sockets and pid files go",
     "For root with the default state folder /run/polder, else run/ in the state folder.", set_run_dir},
    {"socket", "PATH", "the API's unix socket", "polderd.sock in the run folder, if not given.", set_socket_path},
    {"guest-dir", "DIR", "kernel and initramfs of microVMs",
     "$POLDER_GUEST_DIR, else ../lib/polder/guest beside the program.", set_guest_dir},
    {"", NULL, "Network", NULL, NULL},
    {"listen", "ADDRESS:PORT", "serve the API with TLS", "Needs --tls-cert and --tls-key.", set_listen},
    {"tls-cert", "FILE", "the server's certificate, PEM", NULL, set_tls_cert},
    {"tls-key", "FILE", "its key, PEM", NULL, set_tls_key},
    {"tls-ca", "FILE", "accept client certificates signed by this CA",
     "The subject's CN is the name, its OU the role: viewer, operator or admin.", set_tls_ca},
    {"", NULL, "Instances", NULL, NULL},
    {"engine", "NAME", "of instances that do not name one: auto, kvm or jit", NULL, set_engine},
    {"cpu-overcommit", "RATIO", "virtual CPUs that may run, for each of the host's (default: 16)", NULL, set_cpu_overcommit},
    {"memory-overcommit", "RATIO", "memory that may be promised, of what the host has (default: 1)",
     "Above 1 the kernel ends machines when they use what they were promised.", set_memory_overcommit},
    {"no-sandbox", NULL, "run polder-vmm without its jail", "For hosts whose kernel cannot; for trusted guests only.",
     set_no_sandbox},
    {"", NULL, "Other", NULL, NULL},
    {"log-level", "LEVEL", "error, warn, info (default) or debug", NULL, set_log_level},
    {"fault", "POINT", NULL, NULL, set_fault}, /* for tests: see control/fault.h */
    {"help", NULL, "show this help", NULL, set_help},
    {"version", NULL, "show the version", NULL, set_version},
    {"man", NULL, "show the manual page, for man -l -", NULL, set_man},
    {NULL, NULL, NULL, NULL, NULL},
};

static const char access_text[] =
    "The unix socket has mode 0660 and the group polder, if there is one. Root, members of that group and the user that "
    "polderd runs as may do everything. Over TLS a client shows a certificate or a token of \\(aqpolder token create\\(aq.";

static const char *const sections[] = {
    "Access",
    access_text,
    "Signals",
    "SIGTERM and SIGINT end polderd; instances run on, and the next polderd takes them over.",
    "Exit status",
    "0 after SIGTERM or SIGINT, 2 for wrong options, 1 when it could not start.",
    "See also",
    "polder(1), polder-vmm(1), polder-img(1)",
    NULL,
};

const struct option_program polderd_program = {
    .name = "polderd",
    .version = POLDER_VERSION,
    .summary = "run instances, and the API that manages them",
    .description = "polderd keeps instances, images, networks and volumes as they are wanted, and serves the API that the "
                   "command polder speaks. It runs as root, or as a plain user with networks of kind user only.",
    .usage = "[OPTION...]",
    .options = specs,
    .sections = sections,
};
