/* The instance that run's options describe, as the JSON document that POST /v1/instances takes. */
#pragma once

#include <jansson.h>
#include <stdint.h>
#include "base/err.h"

struct cli;

/* Each is -EINVAL with the forms that would do. Results are new references. */

/* "80", "8080:80", "127.0.0.1:8080:80", "[::1]:8080:80", each with "/tcp" or "/udp". */
must_check int spec_parse_port(const char *text, json_t **ret_port, struct err *err);
/* "data:/srv", "data:/srv:ro" */
must_check int spec_parse_volume(const char *text, json_t **ret_volume, struct err *err);
/* "lan", "lan,address=10.88.0.9,mac=52:54:00:00:00:01" */
must_check int spec_parse_network(const char *text, json_t **ret_network, struct err *err);
/* "K=V" as it is; "K": with the value it has here. Appends nothing when K has none. */
must_check int spec_add_env(json_t *env, const char *text, struct err *err);
/* Lines K=V or K; blank ones and those that begin with # do not count. */
must_check int spec_add_env_file(json_t *env, const char *path, struct err *err);

/* From the options; the image is the first operand, the command the others. */
must_check int spec_create(const struct cli *cli, json_t **ret_spec, struct err *err);
