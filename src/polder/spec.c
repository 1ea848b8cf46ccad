#include "polder/spec.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/own.h"
#include "base/size.h"
#include "polder/cli.h"

#define TEXT_MAX 1024

static bool parse_port_number(const char *text, long *ret_port)
{
    char *end;
    *ret_port = isdigit((unsigned char)*text) ? strtol(text, &end, 10) : 0;
    return *ret_port > 0 && *ret_port < 65536 && !*end;
}

/* "[::1]" or "127.0.0.1", in place. NULL: no address. */
static char *parse_address(char *text)
{
    unsigned char binary[16];
    size_t len = strlen(text);
    if (*text == '[' && text[len - 1] == ']') {
        text[len - 1] = '\0';
        text++;
    }
    return inet_pton(strchr(text, ':') ? AF_INET6 : AF_INET, text, binary) == 1 ? text : NULL;
}

int spec_parse_port(const char *text, json_t **ret_port, struct err *err)
{
    char buffer[TEXT_MAX], *host = buffer, *address = NULL;
    long host_port, guest_port;
    snprintf(buffer, sizeof buffer, "%s", text);
    char *protocol = strrchr(buffer, '/');
    if (protocol)
        *protocol++ = '\0';
    char *guest = strrchr(buffer, ':');
    if (guest) {
        *guest++ = '\0';
        char *colon = strrchr(buffer, ':');
        if (colon) {
            *colon = '\0';
            host = colon + 1;
            address = parse_address(buffer);
        }
    } else {
        guest = host;
    }
    if (!parse_port_number(host, &host_port) || !parse_port_number(guest, &guest_port) || (host != buffer && !address) ||
        (protocol && strcmp(protocol, "tcp") != 0 && strcmp(protocol, "udp") != 0))
        return err_say(err, EINVAL, "'%.80s' is no port to publish: [ADDRESS:]HOST-PORT:PORT[/tcp|/udp], like 8080:80", text);
    *ret_port = json_pack("{s:s*, s:I, s:I, s:s}", "host_address", address, "host", (json_int_t)host_port, "guest",
                          (json_int_t)guest_port, "protocol", protocol ? protocol : "tcp");
    return 0;
}

int spec_parse_volume(const char *text, json_t **ret_volume, struct err *err)
{
    char buffer[TEXT_MAX];
    snprintf(buffer, sizeof buffer, "%s", text);
    char *path = strchr(buffer, ':'), *mode = path ? strchr(path + 1, ':') : NULL;
    if (path)
        *path++ = '\0';
    if (mode)
        *mode++ = '\0';
    if (buffer[0] == '/' || buffer[0] == '.')
        return err_say(err, EINVAL, "'%.80s' is a folder of this host, which instances do not see: make a volume (polder volume create) "
                       "and copy into it (polder cp)", buffer);
    if (!path || !*buffer || *path != '/' || !path[1] || (mode && strcmp(mode, "ro") != 0 && strcmp(mode, "rw") != 0))
        return err_say(err, EINVAL, "'%.80s' is no volume to mount: VOLUME:/PATH[:ro], like data:/srv", text);
    *ret_volume = json_pack("{s:s, s:s, s:b}", "volume", buffer, "path", path, "read_only", mode && strcmp(mode, "ro") == 0);
    return 0;
}

int spec_parse_network(const char *text, json_t **ret_network, struct err *err)
{
    char buffer[TEXT_MAX], *rest = buffer;
    snprintf(buffer, sizeof buffer, "%s", text);
    char *name = strsep(&rest, ",");
    json_t *network = json_pack("{s:s}", "network", name);
    for (char *setting; (setting = strsep(&rest, ",")) != NULL;) {
        char *value = strchr(setting, '=');
        if (value)
            *value++ = '\0';
        if (!value || !*value || (strcmp(setting, "address") != 0 && strcmp(setting, "mac") != 0)) {
            json_decref(network);
            return err_say(err, EINVAL, "'%.80s' is no network: NAME[,address=ADDRESS][,mac=MAC], or none", text);
        }
        json_object_set_new(network, setting, json_string(value));
    }
    *ret_network = network;
    return *name ? 0 : (json_decref(network), err_say(err, EINVAL, "a network needs a name: polder network ls shows them"));
}

int spec_add_env(json_t *env, const char *text, struct err *err)
{
    const char *equals = strchr(text, '=');
    if (!*text || equals == text)
        return err_say(err, EINVAL, "'%.80s' is no variable: NAME=VALUE, or NAME for the value it has here", text);
    if (equals)
        return json_array_append_new(env, json_string(text)) < 0 ? err_say(err, EINVAL, "'%.80s' is not UTF-8", text) : 0;
    const char *value = getenv(text);
    if (value && json_array_append_new(env, json_sprintf("%s=%s", text, value)) < 0)
        return err_say(err, EINVAL, "the value of '%.80s' is not UTF-8", text);
    return 0;
}

int spec_add_env_file(json_t *env, const char *path, struct err *err)
{
    FILE *file = fopen(path, "re");
    own_free char *line = NULL;
    size_t size = 0;
    int r = 0;
    if (!file)
        return err_set(err, errno, "environment file '%s'", path);
    for (unsigned number = 1; r == 0 && getline(&line, &size, file) >= 0; number++) {
        line[strcspn(line, "\r\n")] = '\0';
        char *text = line + strspn(line, " \t");
        if (*text && *text != '#' && spec_add_env(env, text, err) < 0)
            r = err_ctx(err, "%s:%u", path, number);
    }
    fclose(file);
    return r;
}

/* ---- all of it ---- */

/* Each value of an option through `parse`, in order, as an array under `member`. */
static int add_each(const struct cli *cli, json_t *spec, const char *option, const char *member,
                    int (*parse)(const char *text, json_t **ret, struct err *err), struct err *err)
{
    const char *value;
    json_t *list = json_array();
    for (size_t at = 0; (value = args_next(&cli->args, option, &at)) != NULL;) {
        json_t *item = NULL;
        if (parse(value, &item, err) < 0) {
            json_decref(list);
            return err_ctx(err, "--%s", option);
        }
        json_array_append_new(list, item);
    }
    if (json_array_size(list))
        json_object_set(spec, member, list);
    json_decref(list);
    return 0;
}

static int add_networks(const struct cli *cli, json_t *spec, struct err *err)
{
    const char *last = cli_value(cli, "network");
    if (last && strcmp(last, "none") == 0)
        return json_object_set_new(spec, "networks", json_array());
    return add_each(cli, spec, "network", "networks", spec_parse_network, err);
}

static int add_env(const struct cli *cli, json_t *spec, struct err *err)
{
    const char *value;
    int r = 0;
    json_t *env = json_array();
    for (size_t at = 0; r == 0 && (value = args_next(&cli->args, "env-file", &at)) != NULL;)
        r = spec_add_env_file(env, value, err);
    for (size_t at = 0; r == 0 && (value = args_next(&cli->args, "env", &at)) != NULL;)
        r = spec_add_env(env, value, err);
    if (json_array_size(env))
        json_object_set(spec, "env", env);
    json_decref(env);
    return r < 0 ? err_ctx(err, "--env") : 0;
}

static int add_labels(const struct cli *cli, json_t *spec, struct err *err)
{
    const char *value;
    json_t *labels = json_object();
    for (size_t at = 0; (value = args_next(&cli->args, "label", &at)) != NULL;) {
        const char *equals = strchr(value, '=');
        size_t len = equals ? (size_t)(equals - value) : strlen(value);
        if (!len || json_object_setn_new(labels, value, len, json_string(equals ? equals + 1 : "")) < 0) {
            json_decref(labels);
            return err_say(err, EINVAL, "--label: '%.80s' is no label: NAME=VALUE", value);
        }
    }
    if (json_object_size(labels))
        json_object_set(spec, "labels", labels);
    json_decref(labels);
    return 0;
}

static int add_texts(const struct cli *cli, json_t *spec, struct err *err)
{
    static const char *const options[][2] = {{"name", "name"}, {"user", "user"},     {"workdir", "workdir"}, {"hostname", "hostname"},
                                             {"restart", "restart"}, {"engine", "engine"}, {"kind", "kind"}};
    for (unsigned i = 0; i < sizeof options / sizeof *options; i++) {
        const char *value = cli_value(cli, options[i][0]);
        if (value && json_object_set_new(spec, options[i][1], json_string(value)) < 0)
            return err_say(err, EINVAL, "--%s: not UTF-8", options[i][0]);
    }
    const char *entrypoint = cli_value(cli, "entrypoint");
    if (entrypoint && *entrypoint)
        json_object_set_new(spec, "entrypoint", json_pack("[s]", entrypoint));
    else if (entrypoint)
        json_object_set_new(spec, "entrypoint", json_array()); /* "": none, whatever the image says */
    return 0;
}

static int add_sizes(const struct cli *cli, json_t *spec, struct err *err)
{
    static const char *const options[][2] = {{"memory", "memory_bytes"}, {"disk", "disk_bytes"}};
    static const struct {
        const char *option, *member;
        long most;
    } numbers[] = {{"cpus", "cpus", 256}, {"cpu-weight", "cpu_weight", 10000}};
    for (unsigned i = 0; i < 2; i++) {
        uint64_t bytes = 0;
        long number = 0;
        if (cli_size(cli, options[i][0], &bytes, err) < 0 ||
            cli_number(cli, numbers[i].option, 1, numbers[i].most, &number, err) < 0)
            return -EINVAL;
        if (cli_value(cli, options[i][0]))
            json_object_set_new(spec, options[i][1], json_integer((json_int_t)bytes));
        if (number)
            json_object_set_new(spec, numbers[i].member, json_integer(number));
    }
    return 0;
}

static int add_user_data(const struct cli *cli, json_t *spec, struct err *err)
{
    const char *path = cli_value(cli, "user-data");
    char text[65536];
    if (!path)
        return 0;
    FILE *file = fopen(path, "re");
    if (!file)
        return err_set(err, errno, "--user-data '%s'", path);
    size_t len = fread(text, 1, sizeof text, file);
    fclose(file);
    if (len == sizeof text || json_object_set_new(spec, "user_data", json_stringn(text, len)) < 0)
        return err_say(err, EINVAL, "--user-data: '%s' is no text below 64 KiB", path);
    return 0;
}

static int add_command(const struct cli *cli, json_t *spec, struct err *err)
{
    json_t *command = json_array();
    const char *word;
    int r = 0;
    for (size_t at = 1; r == 0 && (word = cli_operand(cli, at)) != NULL; at++)
        r = json_array_append_new(command, json_string(word));
    if (json_array_size(command))
        json_object_set(spec, "command", command);
    json_decref(command);
    return r < 0 ? err_say(err, EINVAL, "the command is not UTF-8") : 0;
}

int spec_create(const struct cli *cli, json_t **ret_spec, struct err *err)
{
    static int (*const parts[])(const struct cli *cli, json_t *spec, struct err *err) = {
        add_texts, add_sizes, add_networks, add_env, add_labels, add_user_data, add_command};
    json_t *spec = json_pack("{s:s, s:b, s:b, s:b}", "image", cli_operand(cli, 0), "tty", cli_has(cli, "tty"), "stdin",
                             cli_has(cli, "interactive"), "remove", cli_has(cli, "rm"));
    int r = spec ? 0 : err_say(err, EINVAL, "the image's name is not UTF-8");
    if (r == 0)
        r = add_each(cli, spec, "publish", "ports", spec_parse_port, err);
    if (r == 0)
        r = add_each(cli, spec, "volume", "volumes", spec_parse_volume, err);
    for (unsigned i = 0; r == 0 && i < sizeof parts / sizeof *parts; i++)
        r = parts[i](cli, spec, err);
    if (r < 0) {
        json_decref(spec);
        return r;
    }
    *ret_spec = spec;
    return 0;
}
