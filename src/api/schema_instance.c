/* What an instance shall be. src/control/instance_spec.h says what the members mean and checks how they go together. */
#include "api/schemas.h"

#define MIB (INT64_C(1) << 20)
#define TIB (INT64_C(1) << 40)
#define CPUS_FIELD {.name = "cpus", .text = "1 if left out.", .type = SCHEMA_INTEGER, .min = 1, .max = 32}
#define WEIGHT_FIELD                                                                                         \
    {.name = "cpu_weight", .text = "Its share of busy CPUs; 100 if left out.", .type = SCHEMA_INTEGER, .min = 1, .max = 10000}
#define MEMORY_FIELD                                                                                         \
    {.name = "memory_bytes", .text = "256 MiB if left out.", .type = SCHEMA_INTEGER, .min = 32 * MIB, .max = TIB}
#define PORTS_FIELD {.name = "ports", .text = "Forwarded to it.", .type = SCHEMA_LIST, .object = &port, .max = 64}
#define RESTART_FIELD {.name = "restart", .text = "When it has ended.", .type = SCHEMA_STRING, .values = restarts}
#define LABELS_FIELD {.name = "labels", .text = "The user's own notes.", .type = SCHEMA_MAP, .max = 64}

static const char *const restarts[] = {"no", "on-failure", "always", NULL};

static const struct schema_field network_fields[] = {
    {.name = "network", .text = "Its name; default if left out.", .type = SCHEMA_STRING, .format = SCHEMA_NAME},
    {.name = "address", .text = "A free one, if left out.", .type = SCHEMA_STRING, .format = SCHEMA_IPV4, .max = 15},
    {.name = "mac", .text = "One is made up, if left out.", .type = SCHEMA_STRING, .format = SCHEMA_MAC, .max = 17},
    {0},
};
static const struct schema network = {"InstanceNetwork", "A network interface.", network_fields, false};

static const struct schema_field port_fields[] = {
    {.name = "host_address", .text = "All of the host's, if left out.", .type = SCHEMA_STRING, .format = SCHEMA_IPV4, .max = 15},
    {.name = "host", .text = "Port of the host.", .type = SCHEMA_INTEGER, .min = 1, .max = 65535, .required = true},
    {.name = "guest", .text = "Port of the instance.", .type = SCHEMA_INTEGER, .min = 1, .max = 65535, .required = true},
    {.name = "protocol", .text = "tcp if left out.", .type = SCHEMA_STRING, .values = (const char *const[]){"tcp", "udp", NULL}},
    {0},
};
static const struct schema port = {"InstancePort", "A port forwarded from the host.", port_fields, false};

static const struct schema_field volume_fields[] = {
    {.name = "volume", .text = "Its name.", .type = SCHEMA_STRING, .format = SCHEMA_NAME, .required = true},
    {.name = "path", .text = "Where it is mounted.", .type = SCHEMA_STRING, .format = SCHEMA_PATH, .required = true},
    {.name = "read_only", .text = "Then others may read it, too.", .type = SCHEMA_BOOL},
    {0},
};
static const struct schema volume = {"InstanceVolume", "A volume in an instance.", volume_fields, false};

static const struct schema_field spec_fields[] = {
    {.name = "name", .text = "One is made up, if left out.", .type = SCHEMA_STRING, .format = SCHEMA_NAME},
    {.name = "image", .text = "Pulled, if it is not there.", .type = SCHEMA_STRING, .format = SCHEMA_REF, .max = 512,
     .required = true},
    {.name = "kind", .text = "microvm: of an OCI image; vm: of a disk image.", .type = SCHEMA_STRING,
     .values = (const char *const[]){"microvm", "vm", NULL}},
    {.name = "command", .text = "Instead of the image's.", .type = SCHEMA_LIST},
    {.name = "entrypoint", .text = "Instead of the image's; its command goes, too.", .type = SCHEMA_LIST},
    {.name = "env", .text = "Added to the image's.", .type = SCHEMA_LIST, .format = SCHEMA_ENV},
    {.name = "user", .text = "NAME or UID, with :GROUP or :GID.", .type = SCHEMA_STRING, .max = 255},
    {.name = "workdir", .text = "Where the command starts.", .type = SCHEMA_STRING},
    {.name = "hostname", .text = "The name, if left out.", .type = SCHEMA_STRING, .format = SCHEMA_HOSTNAME, .max = 63},
    {.name = "tty", .text = "The command gets a terminal.", .type = SCHEMA_BOOL},
    {.name = "stdin", .text = "The command's input can be attached.", .type = SCHEMA_BOOL},
    CPUS_FIELD,
    WEIGHT_FIELD,
    MEMORY_FIELD,
    {.name = "disk_bytes", .text = "Of the root disk, which is thin; 10 GiB if left out.", .type = SCHEMA_INTEGER,
     .min = 16 * MIB, .max = 64 * TIB},
    {.name = "networks", .text = "The default network, if left out; none if empty.", .type = SCHEMA_LIST, .object = &network,
     .max = 8},
    PORTS_FIELD,
    {.name = "volumes", .text = "Mounted in it.", .type = SCHEMA_LIST, .object = &volume, .max = 12},
    RESTART_FIELD,
    {.name = "remove", .text = "Removed when it has ended.", .type = SCHEMA_BOOL},
    LABELS_FIELD,
    {.name = "engine", .text = "auto if left out.", .type = SCHEMA_STRING,
     .values = (const char *const[]){"auto", "kvm", "jit", NULL}},
    {.name = "user_data", .text = "For cloud-init, of kind vm.", .type = SCHEMA_STRING, .max = 65536},
    {.name = "start", .text = "Started when it is made.", .type = SCHEMA_BOOL},
    {0},
};
const struct schema schema_instance_spec = {"InstanceSpec", "An instance to make.", spec_fields, false};

static const struct schema_field change_fields[] = {CPUS_FIELD,    WEIGHT_FIELD, MEMORY_FIELD, PORTS_FIELD,
                                                    RESTART_FIELD, LABELS_FIELD, {0}};
const struct schema schema_instance_changes = {
    "InstanceChanges", "What may change; of a running instance, at its next start.", change_fields, false};
