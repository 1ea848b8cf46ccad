#include "agent/power.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/primary.h"
#include "agent/process_spec.h"
#include "agent/root.h"
#include "base/log.h"

#define LINGER_NS 2000000000u /* for hosts that want the exit code */
#define KILLED_MS 200         /* for processes to be gone after SIGKILL */

static void say_exit(int code)
{
    char line[64];
    int n = snprintf(line, sizeof line, "\n%s%d\n", AGENT_EXIT_LINE, code);
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)n);
    (void)ignored;
}

static _Noreturn void power_off(void)
{
    kill(-1, SIGKILL);
    struct timespec step = {.tv_nsec = 2000000};
    for (int i = 0; i < KILLED_MS / 2 && waitpid(-1, NULL, WNOHANG) >= 0; i++) /* until there are no children */
        nanosleep(&step, NULL);
    root_close();
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

/* A machine with an init of its own goes down as that sees fit. */
static void ask_init(void)
{
    if (fork() == 0) {
        execlp("systemctl", "systemctl", "--no-block", "poweroff", (char *)NULL);
        execlp("poweroff", "poweroff", (char *)NULL);
        _exit(127);
    }
}

static void on_power(void *arg)
{
    struct agent *agent = arg;
    if (agent->mode == AGENT_INIT)
        power_off();
    if (agent->mode == AGENT_SERVICE)
        ask_init();
    else
        loop_stop(agent->loop);
}

/* The time for the main process is over. */
static void on_timeout(void *arg)
{
    struct agent *agent = arg;
    if (!primary_is_running(agent->primary)) {
        on_power(agent);
        return;
    }
    primary_signal(agent->primary, SIGKILL); /* its end leads on */
}

int power_create(struct agent *agent, struct err *err)
{
    agent->power_timer = loop_add_timer(agent->loop, on_timeout, agent);
    return agent->power_timer ? 0 : err_set(err, ENOMEM, "timer");
}

void power_main_ended(struct agent *agent, int code)
{
    say_exit(code);
    if (agent->is_going_down)
        loop_timer_set(agent->power_timer, 1);
    else if (agent->mode == AGENT_INIT)
        loop_timer_set(agent->power_timer, LINGER_NS);
}

int shutdown_open(struct session *s, const json_t *request, struct err *err)
{
    struct agent *agent = s->agent;
    const json_t *asked = json_object_get(request, "signal");
    int number = SIGTERM;
    int r = asked ? process_signal(asked, &number, err) : 0;
    if (r < 0)
        return r;
    unsigned timeout_ms = process_number(request, "timeout_ms", 3600 * 1000, 10000);
    agent->is_going_down = true;
    session_reply(s, NULL);
    s->is_waiting = true;
    if (primary_is_running(agent->primary)) {
        primary_signal(agent->primary, number);
        loop_timer_set(agent->power_timer, timeout_ms * UINT64_C(1000000) + 1);
        return 0;
    }
    if (primary_code(agent->primary) >= 0)
        session_exit(s, primary_code(agent->primary));
    loop_timer_set(agent->power_timer, 1);
    return 0;
}

void power_give_up(const struct err *err)
{
    dprintf(STDERR_FILENO, "polder-agent: %s\n", err->message);
    say_exit(125);
    power_off();
}
