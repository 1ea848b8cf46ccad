/* dnsmasq reads its configuration as root and its host files, again at each SIGHUP, as an unprivileged user. It sees the
 * folder by a mount in its own mount namespace, so that no folder above it needs to be open to that user.
 *
 * Only those who have a lease here are answered by DHCP, with the same address that their agent would set. */
#include "control/network_dns.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/own.h"
#include "control/network_daemon.h"

static const char *const files[] = {"dnsmasq.conf", "hosts", "dhcp", "dnsmasq.pid", NULL};

static void path_of(const char *dir, const char *name, char ret_path[static 512])
{
    snprintf(ret_path, 512, "%s/%s", dir, name);
}

static void bridge_argument(const char *bridge, char ret_argument[static 40])
{
    snprintf(ret_argument, 40, "--interface=%s", bridge);
}

/* ---- files ---- */

enum change { SAME, MORE, LESS };

/* MORE: every line of the old text is in the new one. */
static enum change compare(char *old, const char *text)
{
    if (!strcmp(old, text))
        return SAME;
    char *save = NULL;
    for (char *line = strtok_r(old, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        size_t len = strlen(line);
        const char *at = text;
        while (strncmp(at, line, len) != 0 || at[len] != '\n') {
            at = strchr(at, '\n');
            if (!at || !*++at)
                return LESS;
        }
    }
    return MORE;
}

static enum change compare_file(const char *path, const char *text)
{
    own_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0)
        return LESS;
    own_free char *old = calloc(1, (size_t)status.st_size + 1);
    return old && read(fd, old, (size_t)status.st_size) == status.st_size ? compare(old, text) : LESS;
}

/* Whole or not at all: dnsmasq may read it at any time. Gives an enum change, or -errno. */
static int write_if_changed(const char *dir, const char *name, const char *text, size_t len, struct err *err)
{
    char path[512], fresh[512];
    path_of(dir, name, path);
    path_of(dir, "new", fresh);
    enum change change = compare_file(path, text);
    if (change == SAME)
        return SAME;
    own_fd int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || fchmod(fd, 0644) < 0 || write(fd, text, len) != (ssize_t)len || rename(fresh, path) < 0)
        return err_set(err, errno, "write '%s'", path);
    return (int)change;
}

struct dns_job {
    const struct network_info *network;
    const struct network_state *state;
    unsigned index; /* of the bridge */
};

typedef void text_fn(FILE *out, const struct dns_job *job);

static int write_text(const char *dir, const char *name, text_fn *fn, const struct dns_job *job, struct err *err)
{
    own_free char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (!out)
        return err_set(err, ENOMEM, "%s", name);
    fn(out, job);
    if (fclose(out) != 0)
        return err_set(err, errno, "%s", name);
    return write_if_changed(dir, name, text, len, err);
}

typedef void host_fn(FILE *out, const struct network_lease *lease, const char *address);

static void each_host(FILE *out, const struct dns_job *job, host_fn *fn)
{
    for (size_t i = 0; i < job->state->lease_count; i++) {
        const struct network_lease *lease = &job->state->leases[i];
        char address[IPV4_TEXT_SIZE];
        ipv4_format(lease->address, address);
        if (!strcmp(lease->network, job->network->name))
            fn(out, lease, address);
    }
}

static void dns_line(FILE *out, const struct network_lease *lease, const char *address)
{
    fprintf(out, "%s %s\n", address, lease->name);
}

static void dns_text(FILE *out, const struct dns_job *job)
{
    each_host(out, job, dns_line);
}

static void dhcp_line(FILE *out, const struct network_lease *lease, const char *address)
{
    char mac[MAC_TEXT_SIZE];
    mac_format(lease->mac, mac);
    fprintf(out, "%s,%s,%s\n", mac, address, lease->name);
}

static void dhcp_text(FILE *out, const struct dns_job *job)
{
    each_host(out, job, dhcp_line);
}

static const char *unprivileged_user(void)
{
    struct passwd entry, *found = NULL;
    char buffer[1024];
    return getpwnam_r("dnsmasq", &entry, buffer, sizeof buffer, &found) == 0 && found ? "dnsmasq" : "nobody";
}

static void conf_text(FILE *out, const struct dns_job *job)
{
    const struct network_info *network = job->network;
    char base[IPV4_TEXT_SIZE], mask[IPV4_TEXT_SIZE], gateway[IPV4_TEXT_SIZE];
    ipv4_format(network->subnet.base, base);
    ipv4_format(subnet_mask(network->subnet), mask);
    ipv4_format(network->gateway, gateway);
    fprintf(out,
            "# interface %u\n"
            "user=%s\n"
            "bind-interfaces\n"
            "except-interface=lo\n"
            "no-hosts\naddn-hosts=" DAEMON_MOUNT "/hosts\n"
            "domain=%s.internal\nlocal=/%s.internal/\nexpand-hosts\ndomain-needed\nbogus-priv\n"
            "dhcp-range=%s,static,%s,1h\ndhcp-hostsfile=" DAEMON_MOUNT "/dhcp\n"
            "dhcp-option=option:router,%s\ndhcp-option=option:dns-server,%s\n"
            "dhcp-authoritative\nleasefile-ro\nquiet-dhcp\n",
            job->index, unprivileged_user(), network->name, network->name, base, mask, gateway, gateway);
}

/* ---- process ---- */

static int find(const char *dir, const char *bridge)
{
    char pid_file[512], argument[40];
    path_of(dir, "dnsmasq.pid", pid_file);
    bridge_argument(bridge, argument);
    return daemon_find(pid_file, argument);
}

static int start(const char *dir, const char *bridge, struct err *err)
{
    char argument[40];
    bridge_argument(bridge, argument);
    char *argv[] = {"dnsmasq", "--conf-file=" DAEMON_MOUNT "/dnsmasq.conf", "--pid-file=" DAEMON_MOUNT "/dnsmasq.pid", argument, NULL};
    struct daemon_start request = {
        .program = "dnsmasq", .package = "dnsmasq-base", .argv = argv, .mount_dir = dir, .fd = -1};
    return daemon_start(&request, err);
}

int dns_apply(const char *dir, const struct network_info *network, unsigned index, const struct network_state *state,
              struct err *err)
{
    struct dns_job job = {network, state, index};
    int conf = write_text(dir, "dnsmasq.conf", conf_text, &job, err);
    int names = conf < 0 ? conf : write_text(dir, "hosts", dns_text, &job, err);
    int hosts = names < 0 ? names : write_text(dir, "dhcp", dhcp_text, &job, err);
    if (hosts < 0)
        return hosts;
    own_fd int pidfd = find(dir, network->bridge);
    bool anew = conf || names == LESS || hosts == LESS; /* it would go on to know the name of a lease that it gave */
    if (pidfd >= 0 && !anew && (names || hosts) && syscall(SYS_pidfd_send_signal, pidfd, SIGHUP, NULL, 0) < 0)
        return err_set(err, errno, "dnsmasq of network '%s'", network->name);
    if (pidfd >= 0 && !anew)
        return 0;
    if (pidfd >= 0)
        daemon_stop(TAKE_FD(pidfd));
    return start(dir, network->bridge, err);
}

void dns_remove(const char *dir, const char *bridge)
{
    int pidfd = find(dir, bridge);
    if (pidfd >= 0)
        daemon_stop(pidfd);
    for (unsigned i = 0; files[i]; i++) {
        char path[512];
        path_of(dir, files[i], path);
        unlink(path);
    }
}
