/* A process as a request describes it, checked and turned into what child_start() takes. */
#pragma once

#include <jansson.h>
#include "agent/child.h"

#define PROCESS_STRINGS_MAX 4096 /* arguments, and variables */

/* Owns the arrays, not the strings: those are the JSON's, which must live as long. */
struct process_spec {
    struct child_spec child;
    const char **args, **env;
};

/* `base_env` (an array of "K=V", may be NULL) comes before the process's own. */
must_check int process_spec_load(const json_t *json, const json_t *base_env, struct process_spec *ret_spec,
                                 struct err *err);
void process_spec_free(struct process_spec *spec);
/* "TERM", "SIGTERM", "15" or the number 15; -EINVAL. */
must_check int process_signal(const json_t *json, int *ret_signal, struct err *err);
/* An integer of the object within bounds, `fallback` when it is absent or not within. */
unsigned process_number(const json_t *json, const char *key, unsigned max, unsigned fallback);
