/* polder-vmm: runs one virtual machine. One loop in the main thread serves the console, signals and the devices that
 * have no thread of their own. */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/log.h"
#include "vmm/machine.h"
#include "vmm/options.h"

struct program {
    struct vmm_options options;
    struct loop *loop;
    struct machine *machine;
    int status;
    int signal_fd;
};

static int fail(const struct err *err)
{
    fprintf(stderr, "polder-vmm: %s\n", err->message);
    return VMM_STATUS_FAILURE;
}

static int status_of(enum machine_end end)
{
    switch (end) {
    case MACHINE_POWEROFF:
    case MACHINE_USER_QUIT:
        return VMM_STATUS_OK;
    case MACHINE_REBOOT:
        return VMM_STATUS_REBOOT;
    case MACHINE_TRIPLE_FAULT:
        return VMM_STATUS_TRIPLE_FAULT;
    case MACHINE_PANIC:
        return VMM_STATUS_PANIC;
    case MACHINE_ENGINE_ERROR:
        break;
    }
    return VMM_STATUS_ENGINE;
}

static void on_machine_end(void *arg, enum machine_end end, const char *cause)
{
    struct program *program = arg;
    program->status = status_of(end);
    if (program->status == VMM_STATUS_OK)
        log_info("%s", cause);
    else
        log_error("%s", cause);
    loop_stop(program->loop);
}

/* ---- signals ---- */

static void on_signal(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct program *program = arg;
    struct signalfd_siginfo info;
    if (read(fd, &info, sizeof info) != sizeof info)
        return;
    log_info("ended by signal %u", info.ssi_signo);
    program->status = 128 + (int)info.ssi_signo;
    loop_stop(program->loop);
}

/* Before any thread starts, so that all of them have these blocked. */
static int watch_signals(struct program *program, struct err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGQUIT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    program->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (program->signal_fd < 0 || !loop_add_fd(program->loop, program->signal_fd, EPOLLIN, on_signal, program))
        return err_set(err, errno, "signals");
    return 0;
}

/* ---- life ---- */

static int open_log(const struct vm_config *config, struct err *err)
{
    log_threshold = config->log_level;
    if (!config->log_path)
        return 0;
    int fd = open(config->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, errno, "log file '%s'", config->log_path);
    log_to(fd);
    return 0;
}

static int start_machine(struct program *program, struct err *err)
{
    struct machine_host host = {.loop = program->loop, .arg = program, .ended = on_machine_end};
    int r = machine_create(program->options.config, host, &program->machine, err);
    if (r < 0)
        return r;
    if (machine_console_path(program->machine))
        fprintf(stderr, "polder-vmm: console on %s\n", machine_console_path(program->machine));
    machine_resume(program->machine);
    return 0;
}

static int run(struct program *program, struct err *err)
{
    int r = open_log(program->options.config, err);
    if (r == 0)
        r = loop_create(&program->loop, err);
    if (r == 0)
        r = watch_signals(program, err);
    if (r == 0)
        r = start_machine(program, err);
    if (r == 0)
        loop_run(program->loop);
    return r;
}

static void print_stats(const struct program *program)
{
    struct engine *engine = program->machine ? machine_engine(program->machine) : NULL;
    if (engine && program->options.print_stats && engine->class->print_stats)
        engine->class->print_stats(engine, STDERR_FILENO);
}

static void clean_up(struct program *program)
{
    print_stats(program);
    machine_free(program->machine);
    loop_free(program->loop);
    if (program->signal_fd >= 0)
        close(program->signal_fd);
    vm_config_free(program->options.config);
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
    else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    mallopt(M_ARENA_MAX, 1); /* memory for the guest, not for the allocator's threads */
    struct program program = {.signal_fd = -1, .options.config = vm_config_new()};
    struct err err = {0};
    if (!program.options.config)
        return VMM_STATUS_FAILURE;
    if (option_parse(&vmm_program, &program.options, argc, argv, &err) < 0) {
        program.status = VMM_STATUS_USAGE;
        fail(&err);
    } else if (print_information(&program.options)) {
        program.status = VMM_STATUS_OK;
    } else if (!program.options.config->kernel) {
        fprintf(stderr, "polder-vmm: no kernel to boot, give one with --kernel (see --help)\n");
        program.status = VMM_STATUS_USAGE;
    } else if (run(&program, &err) < 0) {
        program.status = fail(&err);
    }
    clean_up(&program);
    return program.status;
}
