#include "polder/args.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int args_init(struct args *args, int argc)
{
    /* "-abc" may give as many options as it has letters: room is made as they come */
    *args = (struct args){.operands = calloc((size_t)argc + 1, sizeof *args->operands)};
    return args->operands ? 0 : -ENOMEM;
}

void args_clear(struct args *args)
{
    free(args->options);
    free(args->operands);
    *args = (struct args){0};
}

int args_store(void *target, const struct option_spec *spec, const char *value, struct err *err)
{
    struct args *args = target;
    struct args_option *options = reallocarray(args->options, args->option_count + 1, sizeof *options);
    if (!options)
        return err_set(err, ENOMEM, "option");
    options[args->option_count++] = (struct args_option){spec, value};
    args->options = options;
    return 0;
}

int args_operand(void *target, const char *value, struct err *err)
{
    (void)err;
    struct args *args = target;
    args->operands[args->operand_count++] = value;
    return 0;
}

bool args_has(const struct args *args, const char *name)
{
    for (size_t i = 0; i < args->option_count; i++)
        if (strcmp(option_name(args->options[i].spec), name) == 0)
            return true;
    return false;
}

const char *args_next(const struct args *args, const char *name, size_t *at)
{
    while (*at < args->option_count) {
        const struct args_option *option = &args->options[(*at)++];
        if (strcmp(option_name(option->spec), name) == 0)
            return option->value;
    }
    return NULL;
}

const char *args_value(const struct args *args, const char *name)
{
    const char *last = NULL, *value;
    for (size_t at = 0; (value = args_next(args, name, &at)) != NULL;)
        last = value;
    return last;
}

const char *args_operand_at(const struct args *args, size_t at)
{
    return at < args->operand_count ? args->operands[at] : NULL;
}
