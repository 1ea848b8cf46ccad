/* The table: one line a group, and the options that every command takes. */
#include <stddef.h>

#include "polder/commands.h"

const struct command_group command_groups[] = {
    {"", "Run", run_commands},
    {"", "Instances", instance_commands},
    {"", "Look", look_commands},
    {"", "Way in", session_commands},
    {"snapshot", "Snapshots of disks", snapshot_commands},
    {"image", "Images", image_commands},
    {"network", "Networks", network_commands},
    {"volume", "Volumes", volume_commands},
    {"token", "Access", token_commands},
    {"system", "The daemon", system_commands},
    {"", "Other", other_commands},
    {NULL, NULL, NULL},
};

const struct option_spec command_options[] = {
    {"", NULL, "Options of every command", NULL, NULL},
    {"socket", "PATH", "polderd's unix socket", "Default: $POLDER_SOCKET, /run/polder/polderd.sock, or the user's own.", NULL},
    {"remote", "URL", "a polderd elsewhere: https://HOST:PORT", "Default: $POLDER_REMOTE.", NULL},
    {"token-file", "FILE", "file with the token for a remote polderd", "Default: the token in $POLDER_TOKEN.", NULL},
    {"tls-ca", "FILE", "certificate authority to trust (PEM)", NULL, NULL},
    {"tls-cert", "FILE", "certificate to show (PEM)", NULL, NULL},
    {"tls-key", "FILE", "its key (PEM)", NULL, NULL},
    {"o,output", "table|wide|json|name", "how results are shown (default: table)", NULL, NULL},
    {"q,quiet", NULL, "names only, no progress", NULL, NULL},
    {"h,help", NULL, "show help", NULL, NULL},
    {"man", NULL, "print the man page (roff)", NULL, NULL},
    {"version", NULL, "show the version", NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
