#include "agent/setup.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/netlink.h"
#include "agent/root.h"

#define NAME_MAX_BYTES 64 /* of a host: HOST_NAME_MAX */

/* What docker sets for containers too, and images rely on. */
static const struct {
    const char *path, *value;
} sysctls[] = {{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
               {"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"}};

/* Replaces a file, also where the image has a link there. */
static FILE *replace(const char *path)
{
    mkdir("/etc", 0755);
    unlink(path);
    return fopen(path, "we");
}

static bool is_word(const char *text)
{
    return text && text[0] && strlen(text) < NAME_MAX_BYTES && !strpbrk(text, " \t\n#");
}

static const char *string_of(const json_t *json, const char *key)
{
    return json_string_value(json_object_get(json, key));
}

static int set_name(const char *name, struct err *err)
{
    if (!is_word(name))
        return err_say(err, EINVAL, "\"hostname\" is not a name of at most %d bytes", NAME_MAX_BYTES - 1);
    if (sethostname(name, strlen(name)) < 0)
        return err_set(err, errno, "set the host name");
    FILE *f = replace("/etc/hostname");
    if (!f)
        return err_set(err, errno, "write /etc/hostname");
    fprintf(f, "%s\n", name);
    return fclose(f) < 0 ? err_set(err, errno, "write /etc/hostname") : 0;
}

/* The machine's own name goes with its first address. */
static int write_hosts(const json_t *request, const char *name, struct err *err)
{
    FILE *f = replace("/etc/hosts");
    if (!f)
        return err_set(err, errno, "write /etc/hosts");
    fputs("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n", f);
    const char *address = string_of(json_array_get(json_object_get(request, "networks"), 0), "address");
    if (address && name)
        fprintf(f, "%.*s\t%s\n", (int)strcspn(address, "/"), address, name);
    else if (name)
        fprintf(f, "127.0.1.1\t%s\n", name);
    const json_t *hosts = json_object_get(request, "hosts");
    for (size_t i = 0; i < json_array_size(hosts); i++) {
        const json_t *entry = json_array_get(hosts, i);
        if (is_word(string_of(entry, "address")) && is_word(string_of(entry, "name")))
            fprintf(f, "%s\t%s\n", string_of(entry, "address"), string_of(entry, "name"));
    }
    return fclose(f) < 0 ? err_set(err, errno, "write /etc/hosts") : 0;
}

static int write_resolver(const json_t *networks, struct err *err)
{
    FILE *f = replace("/etc/resolv.conf");
    if (!f)
        return err_set(err, errno, "write /etc/resolv.conf");
    for (size_t i = 0; i < json_array_size(networks); i++) {
        const json_t *servers = json_object_get(json_array_get(networks, i), "dns");
        for (size_t k = 0; k < json_array_size(servers); k++) {
            const char *server = json_string_value(json_array_get(servers, k));
            if (is_word(server))
                fprintf(f, "nameserver %s\n", server);
        }
    }
    return fclose(f) < 0 ? err_set(err, errno, "write /etc/resolv.conf") : 0;
}

static int set_networks(const json_t *networks, struct err *err)
{
    int r = netlink_loopback(err);
    for (size_t i = 0; r == 0 && i < json_array_size(networks); i++) {
        const json_t *network = json_array_get(networks, i);
        r = netlink_configure(string_of(network, "mac"), string_of(network, "address"), string_of(network, "gateway"), err);
    }
    for (size_t i = 0; i < sizeof sysctls / sizeof sysctls[0]; i++) {
        FILE *f = fopen(sysctls[i].path, "we");
        if (f) {
            fputs(sysctls[i].value, f);
            fclose(f);
        }
    }
    return r < 0 ? r : write_resolver(networks, err);
}

static int mount_volume(const json_t *m, struct err *err)
{
    const char *device = string_of(m, "device"), *path = string_of(m, "path"), *fs = string_of(m, "fs");
    if (!device || !path || path[0] != '/')
        return err_say(err, EINVAL, "a mount wants a device and an absolute path");
    unsigned long flags = MS_NODEV | (json_is_true(json_object_get(m, "read_only")) ? MS_RDONLY : 0);
    return root_mount_disk(device, path, fs && fs[0] ? fs : "ext4", flags, err);
}

int setup_apply(const json_t *request, struct err *err)
{
    const char *name = string_of(request, "hostname");
    const json_t *networks = json_object_get(request, "networks");
    int r = name ? set_name(name, err) : 0;
    if (r == 0)
        r = write_hosts(request, name, err);
    if (r == 0)
        r = set_networks(networks, err);
    const json_t *mounts = json_object_get(request, "mounts");
    for (size_t i = 0; r == 0 && i < json_array_size(mounts); i++)
        r = mount_volume(json_array_get(mounts, i), err);
    return r;
}
