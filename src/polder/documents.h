/* What networks, volumes and tokens have in common: documents by name below one path. */
#pragma once

#include <jansson.h>
#include "polder/cli.h"

struct documents {
    const char *path; /* "/v1/networks" */
    const struct cli_column *columns;
};

must_check int documents_list(struct cli *cli, const struct documents *documents, struct err *err);
must_check int documents_inspect(struct cli *cli, const struct documents *documents, struct err *err);
/* Each operand. */
must_check int documents_remove(struct cli *cli, const struct documents *documents, struct err *err);
/* `body` is taken; prints the first operand. */
must_check int documents_create(struct cli *cli, const struct documents *documents, json_t *body, struct err *err);
/* POST to PATH/NAME/VERB of the first operand, whose suffix prints as `done`. `body` is taken. */
must_check int documents_act(struct cli *cli, const struct documents *documents, const char *verb, json_t *body, const char *done,
                             struct err *err);
