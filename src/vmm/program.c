/* The program's life: log, loop, signals, config file, API, machine, end. */
#include "vmm/program.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/log.h"
#include "vmm/jail.h"
#include "vmm/terminal.h"

/* Ending takes milliseconds and, with disks to flush, perhaps seconds. A vCPU that an engine's bug keeps from stopping, or a
 * file system that hangs, must not keep the process: SIGALRM ends it then. */
#define END_LIMIT_S 30

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
    if (info.ssi_signo == SIGWINCH) {
        struct machine *machine = api_machine_get(program->binding);
        if (machine)
            machine_window_changed(machine);
        return;
    }
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
    sigaddset(&set, SIGWINCH);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    terminal_catch_fatal_signals();
    program->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (program->signal_fd < 0 || !loop_add_fd(program->loop, program->signal_fd, EPOLLIN, on_signal, program))
        return err_set(err, errno, "signals");
    return 0;
}

/* ---- configuration and API ---- */

static int open_log(const struct vm_config *config, struct err *err)
{
    log_threshold = config->log_level;
    if (!config->log_path)
        return 0;
    int fd = fdname_open(config->log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0)
        return err_set(err, errno, "log file '%s'", config->log_path);
    log_to(fd);
    return 0;
}

static int check_socket_path(const char *path, struct err *err)
{
    struct stat st;
    if (path && lstat(path, &st) == 0)
        return err_say(err, EADDRINUSE, "API socket '%s': something is there already; remove it or give another path", path);
    return 0;
}

/* The API object also applies config files and writes metrics, so that they behave as its requests do. */
static int set_up_api(struct program *program, struct err *err)
{
    struct vm_config *config = program->options.config;
    if (!config->api_sock && !config->config_file && !config->metrics_path)
        return 0;
    int r = api_create(config, &api_machine_ops, program->binding, &program->api, err);
    if (r == 0 && config->metrics_path) {
        program->new_metrics = fdname_parse(config->metrics_path) < 0 && access(config->metrics_path, F_OK) < 0;
        r = api_open_metrics(program->api, config->metrics_path, err);
    }
    if (r == 0 && config->config_file)
        r = api_load_config_file(program->api, config->config_file, err);
    return r;
}

static int start_machine(struct program *program, struct err *err)
{
    int r = api_machine_start(program->binding, program->options.config, err);
    if (r < 0)
        return r;
    const char *pty = machine_console_path(api_machine_get(program->binding));
    if (pty)
        fprintf(stderr, "polder-vmm: console on %s\n", pty);
    pty = machine_hvc_path(api_machine_get(program->binding));
    if (pty)
        fprintf(stderr, "polder-vmm: virtio console on %s\n", pty);
    return 0;
}

/* A socket that nobody may connect to before the machine is there: requests would race with its start. */
static int start(struct program *program, struct err *err)
{
    const struct vm_config *config = program->options.config;
    int r = check_socket_path(config->api_sock, err);
    if (r == 0 && !config->kernel && !config->api_sock)
        return err_say(err, EINVAL, "no kernel to boot, give one with --kernel or in the config file");
    if (r == 0 && config->kernel)
        r = start_machine(program, err);
    if (r == 0 && config->api_sock)
        r = api_listen(program->api, config->api_sock, err);
    return r;
}

static int create_binding(struct program *program, struct err *err)
{
    struct machine_host host = {.loop = program->loop, .arg = program, .ended = on_machine_end};
    return api_machine_create(host, &program->binding, err);
}

int program_run(struct program *program, struct err *err)
{
    int r = open_log(program->options.config, err);
    if (r == 0)
        r = jail_enter(program->options.config, err);
    if (r == 0)
        r = loop_create(&program->loop, err);
    if (r == 0)
        r = watch_signals(program, err);
    if (r == 0)
        r = create_binding(program, err);
    if (r == 0)
        r = set_up_api(program, err);
    if (r == 0)
        r = start(program, err);
    if (r == 0)
        loop_run(program->loop);
    else if (program->new_metrics)
        unlink(program->options.config->metrics_path);
    return r;
}

static void print_stats(struct machine *machine)
{
    struct engine *engine = machine_engine(machine);
    if (engine->class->print_stats)
        engine->class->print_stats(engine, STDERR_FILENO);
}

void program_end(struct program *program)
{
    alarm(END_LIMIT_S);
    if (program->binding)
        api_machine_close(program->binding);
    api_free(program->api);
    struct machine *machine = program->binding ? api_machine_get(program->binding) : NULL;
    if (machine)
        machine_pause(machine);
    if (machine && program->options.print_stats)
        print_stats(machine);
    api_machine_free(program->binding);
    loop_free(program->loop);
    if (program->signal_fd >= 0)
        close(program->signal_fd);
}
