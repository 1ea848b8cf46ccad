/* Looks at the host when its links or addresses change, and every two seconds for the rest: rules, dnsmasq. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/own.h"
#include "control/network_impl.h"
#include "control/network_link.h"

#define PERIOD_MS 2000
#define CALM_MS 50 /* changes come in swarms */

/* A fault is told when it is new. */
static void look(struct networks *networks, char *last, size_t size)
{
    struct err err = {0};
    int r = network_apply(networks, NULL, &err);
    if (r < 0 && strcmp(last, err.message) != 0)
        log_warn("networks: %s", err.message);
    snprintf(last, size, "%s", r < 0 ? err.message : "");
}

static void drain(int fd)
{
    char buffer[8192];
    while (recv(fd, buffer, sizeof buffer, MSG_DONTWAIT) > 0 || errno == ENOBUFS)
        ;
}

static void *run(void *arg)
{
    struct networks *networks = arg;
    own_fd int monitor = link_open_monitor(); /* without it, every two seconds must do */
    struct pollfd fds[] = {{.fd = networks->wake_fd, .events = POLLIN}, {.fd = monitor, .events = POLLIN}};
    char last[ERR_MESSAGE_SIZE] = "";
    do {
        look(networks, last, sizeof last);
        if (poll(fds, 2, PERIOD_MS) > 0 && fds[1].revents) {
            poll(fds, 1, CALM_MS);
            drain(monitor);
        }
    } while (!fds[0].revents);
    return NULL;
}

int network_watch_start(struct networks *networks, struct err *err)
{
    networks->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (networks->wake_fd < 0)
        return err_set(err, errno, "networks");
    int r = pthread_create(&networks->thread, NULL, run, networks);
    if (r == 0)
        return 0;
    close(networks->wake_fd);
    return err_set(err, r, "thread of networks");
}

void network_watch_end(struct networks *networks)
{
    eventfd_write(networks->wake_fd, 1);
    pthread_join(networks->thread, NULL);
    close(networks->wake_fd);
}
