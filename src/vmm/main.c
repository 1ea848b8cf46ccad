/* polder-vmm: runs one virtual machine. */
#include <malloc.h>
#include <stdio.h>

#include <jansson.h>

#include "cpu/engine.h"
#include "vmm/program.h"

/* {"engine", "reason"}, or {"error"} where none can run. */
static void print_probe(const struct vm_config *config)
{
    const struct engine_class *engine;
    char reason[ENGINE_REASON_SIZE] = "";
    struct err err = {0};
    json_t *out = engine_choose(config->kvm_device, &engine, reason, &err) < 0
                      ? json_pack("{s:s}", "error", err.message)
                      : json_pack("{s:s, s:s}", "engine", engine->name, "reason", reason);
    json_dumpf(out, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(out);
}

/* True when the options only asked for a text. */
static bool print_information(const struct vmm_options *options)
{
    if (options->help)
        option_print_help(&vmm_program, stdout);
    else if (options->version)
        printf("polder-vmm %s\n", POLDER_VERSION);
    else if (options->man)
        option_print_man(&vmm_program, stdout);
    else if (options->probe)
        print_probe(options->config);
    else if (options->openapi)
        api_write_openapi(stdout);
    else
        return false;
    return true;
}

static int run(struct program *program, int argc, char **argv)
{
    struct err err = {0};
    const struct vm_config *config = program->options.config;
    int status = VMM_STATUS_USAGE;
    if (option_parse(&vmm_program, &program->options, argc, argv, &err) == 0) {
        if (print_information(&program->options))
            return VMM_STATUS_OK;
        if (!config->kernel && !config->config_file && !config->api_sock)
            err_say(&err, 1, "no kernel to boot, give one with --kernel (see --help)");
        else if (program_run(program, &err) == 0)
            return program->status;
        else
            status = VMM_STATUS_FAILURE;
    }
    fprintf(stderr, "polder-vmm: %s\n", err.message);
    return status;
}

int main(int argc, char **argv)
{
    mallopt(M_ARENA_MAX, 1); /* memory for the guest, not for the allocator's threads */
    struct program program = {.signal_fd = -1, .options.config = vm_config_new()};
    if (!program.options.config) {
        fprintf(stderr, "polder-vmm: out of memory\n");
        return VMM_STATUS_FAILURE;
    }
    program.status = run(&program, argc, argv);
    program_end(&program);
    vm_config_free(program.options.config);
    return program.status;
}
