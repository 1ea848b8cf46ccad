/* polderd: the platform's daemon. */
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>

#include "base/option.h"
#include "polderd/polderd.h"

#define FILES_WANTED 65536 /* as in polderd.service */

enum { STATUS_OK = 0, STATUS_FAILURE = 1, STATUS_USAGE = 2 };

static bool print_information(const struct options *options)
{
    if (options->help)
        option_print_help(&polderd_program, stdout);
    else if (options->version)
        printf("polderd %s\n", POLDER_VERSION);
    else if (options->man)
        option_print_man(&polderd_program, stdout);
    else
        return false;
    return true;
}

/* Before any thread starts, so that all of them have these blocked. */
static void block_signals(sigset_t *ret_set)
{
    sigemptyset(ret_set);
    sigaddset(ret_set, SIGTERM);
    sigaddset(ret_set, SIGINT);
    sigprocmask(SIG_BLOCK, ret_set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
}

/* Connections and machines take several each; the usual limit of a shell is for programs that use select(). */
static void raise_files(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < FILES_WANTED) {
        files.rlim_cur = files.rlim_max < FILES_WANTED ? files.rlim_max : FILES_WANTED;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
}

static void serve(const struct polderd *polderd, const sigset_t *signals)
{
    int number = 0;
    log_info("polderd %s serves on %s, state in %s", POLDER_VERSION, polderd->socket_path, polderd->state_dir);
    if (server_port(polderd->server))
        log_info("and with TLS on port %u", server_port(polderd->server));
    sd_notify(0, "READY=1");
    sigwait(signals, &number);
    log_info("ended by signal %d", number);
    sd_notify(0, "STOPPING=1");
}

int main(int argc, char **argv)
{
    struct polderd polderd = {.lock_fd = -1, .run_lock_fd = -1, .options.log_level = LOG_INFO};
    struct err err = {0};
    sigset_t signals;
    mallopt(M_ARENA_MAX, 2); /* hundreds of threads that allocate little share two arenas */
    if (option_parse(&polderd_program, &polderd.options, argc, argv, &err) < 0) {
        fprintf(stderr, "polderd: %s\n", err.message);
        return STATUS_USAGE;
    }
    if (print_information(&polderd.options))
        return STATUS_OK;
    log_threshold = polderd.options.log_level;
    block_signals(&signals);
    raise_files();
    int r = environment_clean(&err);
    if (r == 0)
        r = polderd_start(&polderd, &err);
    if (r < 0)
        fprintf(stderr, "polderd: %s\n", err.message);
    else
        serve(&polderd, &signals);
    polderd_stop(&polderd);
    return r < 0 ? STATUS_FAILURE : STATUS_OK;
}
