/* The options and operands that a command line gave. Values point into argv. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include "base/option.h"

struct args {
    struct args_option {
        const struct option_spec *spec;
        const char *value;
    } *options;
    size_t option_count;
    const char **operands; /* those of the last parse */
    size_t operand_count;
};

/* Room for `argc` of both. -ENOMEM. */
must_check int args_init(struct args *args, int argc);
void args_clear(struct args *args);
/* For struct option_program. */
int args_store(void *args, const struct option_spec *spec, const char *value, struct err *err);
int args_operand(void *args, const char *value, struct err *err);

bool args_has(const struct args *args, const char *name);
/* The last one's; NULL when it was not given. */
const char *args_value(const struct args *args, const char *name);
/* Goes through all of them: *at from 0; NULL behind the last. */
const char *args_next(const struct args *args, const char *name, size_t *at);
/* NULL when there are not so many. */
const char *args_operand_at(const struct args *args, size_t at);
