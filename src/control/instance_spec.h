/* What an instance shall be: the JSON object that POST /v1/instances takes and its document keeps as "spec". Pure
 * functions.
 *
 * {"name", "image" (required), "kind": "microvm"|"vm", "command": [..], "entrypoint": [..], "env": ["K=V"], "user", "workdir",
 *  "hostname", "tty", "stdin", "cpus": 1, "cpu_weight": 100, "memory_bytes": 256 MiB (vm: 1 GiB), "disk_bytes": 10 GiB,
 *  "networks": [{"network", "address", "mac"}] (absent: the default network), "ports": [{"host_address", "host", "guest",
 *  "protocol"}], "volumes": [{"volume", "path", "read_only"}], "restart": "no"|"on-failure"|"always", "remove",
 *  "labels": {}, "engine": "auto"|"kvm"|"jit", "user_data"} */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include "base/err.h"

/* [a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?: instances, networks, volumes, snapshots, tokens. */
bool instance_name_valid(const char *name);

/* A complete copy of `body` with all defaults filled in ("name" stays absent when it is). -EINVAL names the member that is
 * wrong, is not known, or does not go with another. */
must_check int instance_spec_check(const json_t *body, json_t **ret_spec, struct err *err);
/* A new spec with `changes` (see instance_update) in it. */
must_check int instance_spec_change(const json_t *spec, const json_t *changes, json_t **ret_spec, struct err *err);

/* The main process by spec and image configuration, as docker does it: an entrypoint of the spec replaces both of the
 * image's, a command only the command; the spec's env goes over the image's. `image`: {"entrypoint", "cmd", "env", "user",
 * "workdir"}, each may be absent. Gives the agent's {"args", "env", "user", "cwd", "tty", "stdin"}; -EINVAL when there is
 * nothing to run. */
must_check int instance_spec_process(const json_t *spec, const json_t *image, json_t **ret_process, struct err *err);
