/* polder-vmm's API as the controller uses it. */
#include "control/vmm_client.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include "base/clock.h"
#include "base/own.h"
#include "control/json.h"
#include "control/unix_socket.h"

#define TIMEOUT_MS 5000u
#define SNAPSHOT_TIMEOUT_MS 60000u /* a snapshot writes the image's tables */

static int send_all(int fd, const char *bytes, size_t len, struct err *err)
{
    while (len) {
        ssize_t sent = send(fd, bytes, len, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return err_set(err, errno == EAGAIN ? ETIMEDOUT : errno, "machine's API");
        bytes += sent;
        len -= (size_t)sent;
    }
    return 0;
}

/* Reads to the end of the connection. */
static int receive_all(int fd, int64_t end_ms, char **ret_bytes, size_t *ret_len, struct err *err)
{
    own_free char *bytes = malloc(VMM_ANSWER_MAX);
    size_t len = 0;
    if (!bytes)
        return err_set(err, ENOMEM, "machine's API");
    for (;;) {
        ssize_t got = recv(fd, bytes + len, VMM_ANSWER_MAX - len, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set(err, errno == EAGAIN ? ETIMEDOUT : errno, "machine's API");
        if (!got)
            break;
        len += (size_t)got;
        if (len == VMM_ANSWER_MAX)
            return err_say(err, EPROTO, "machine's API: the answer is too long");
        if (clock_now_ms() > end_ms)
            return err_set(err, ETIMEDOUT, "machine's API");
    }
    *ret_bytes = TAKE(bytes);
    *ret_len = len;
    return 0;
}

int vmm_parse_answer(const char *bytes, size_t len_bytes, int *ret_status, size_t *ret_body, struct err *err)
{
    const char *end = memmem(bytes, len_bytes, "\r\n\r\n", 4);
    if (!end || len_bytes < 12 || memcmp(bytes, "HTTP/1.", 7) != 0 || bytes[8] != ' ')
        return err_say(err, EPROTO, "machine's API: that is no HTTP answer");
    int status = 0;
    for (int i = 9; i < 12; i++) {
        if (bytes[i] < '0' || bytes[i] > '9')
            return err_say(err, EPROTO, "machine's API: that is no HTTP status");
        status = status * 10 + bytes[i] - '0';
    }
    *ret_status = status;
    *ret_body = (size_t)(end + 4 - bytes);
    return 0;
}

/* A text of the machine's for a line of ours: nothing in it moves a terminal's cursor or begins a new line. */
static int refused(const char *text, struct err *err)
{
    char line[160];
    size_t len = 0;
    for (; len < sizeof line - 1 && text[len]; len++)
        line[len] = (char)((unsigned char)text[len] < ' ' || text[len] == 0x7f ? ' ' : text[len]);
    line[len] = '\0';
    return err_say(err, EREMOTEIO, "the machine refused: %s", line);
}

int vmm_read_answer(const char *bytes, size_t len_bytes, json_t **ret_answer, struct err *err)
{
    int status = 0;
    size_t body = 0;
    int ret = vmm_parse_answer(bytes, len_bytes, &status, &body, err);
    if (ret < 0)
        return ret;
    own_json json_t *answer = body < len_bytes ? json_loadb(bytes + body, len_bytes - body, 0, NULL) : NULL;
    if (body < len_bytes && !answer)
        return err_say(err, EPROTO, "machine's API: the answer is no JSON");
    if (status >= 300)
        return refused(json_text(answer, "fault_message"), err);
    if (ret_answer)
        *ret_answer = TAKE(answer);
    return 0;
}

int vmm_request(const char *socket_path, const char *method, const char *path, const json_t *body, unsigned timeout_ms,
                json_t **ret_answer, struct err *err)
{
    own_fd int fd = -1;
    own_free char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    own_free char *request = NULL;
    own_free char *bytes = NULL;
    size_t len = 0;
    int request_len = asprintf(&request,
                               "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                               "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                               method, path, text ? strlen(text) : 0, text ? text : "");
    if (request_len < 0)
        return err_set(err, ENOMEM, "machine's API");
    int64_t end_ms = clock_now_ms() + timeout_ms;
    int ret = unix_connect(socket_path, timeout_ms, &fd, err);
    if (!ret)
        ret = send_all(fd, request, (size_t)request_len, err);
    if (!ret)
        ret = receive_all(fd, end_ms, &bytes, &len, err);
    return ret < 0 || !bytes ? ret : vmm_read_answer(bytes, len, ret_answer, err);
}

/* ---- requests ---- */

/* Sends `body` and gives it up. */
static int send_body(const char *socket_path, const char *method, const char *path, json_t *body, unsigned timeout_ms,
                     struct err *err)
{
    own_json json_t *owned = body;
    return vmm_request(socket_path, method, path, owned, timeout_ms, NULL, err);
}

int vmm_get_state(const char *socket_path, enum vmm_state *ret_state, struct err *err)
{
    static const char *const names[] = {"Not started", "Running", "Paused"};
    own_json json_t *answer = NULL;
    int ret = vmm_request(socket_path, "GET", "/", NULL, TIMEOUT_MS, &answer, err);
    if (ret < 0)
        return ret;
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!strcmp(json_text(answer, "state"), names[i])) {
            *ret_state = (enum vmm_state)i;
            return 0;
        }
    }
    return err_say(err, EPROTO, "machine's API: that is no state");
}

int vmm_set_paused(const char *socket_path, bool paused, struct err *err)
{
    return send_body(socket_path, "PATCH", "/vm", json_pack("{s:s}", "state", paused ? "Paused" : "Resumed"), TIMEOUT_MS,
                     err);
}

int vmm_power_button(const char *socket_path, struct err *err)
{
    return send_body(socket_path, "PUT", "/actions", json_pack("{s:s}", "action_type", "SendCtrlAltDel"), TIMEOUT_MS, err);
}

/* A counter of the machine's: never negative, so that sums grow. */
static uint64_t counter(const json_t *group, const char *name)
{
    json_int_t value = json_integer_value(json_object_get(group, name));
    return value > 0 ? (uint64_t)value : 0;
}

void vmm_read_traffic(const json_t *metrics, struct vmm_traffic *ret_traffic)
{
    const char *name;
    json_t *group;
    *ret_traffic = (struct vmm_traffic){0};
    json_object_foreach ((json_t *)(uintptr_t)metrics, name, group) {
        if (!strncmp(name, "net_", 4)) {
            ret_traffic->net_rx += counter(group, "rx_bytes_count");
            ret_traffic->net_tx += counter(group, "tx_bytes_count");
        } else if (!strncmp(name, "block_", 6)) {
            ret_traffic->disk_read += counter(group, "read_bytes");
            ret_traffic->disk_written += counter(group, "write_bytes");
        }
    }
}

int vmm_get_traffic(const char *socket_path, unsigned timeout_ms, struct vmm_traffic *ret_traffic, struct err *err)
{
    own_json json_t *metrics = NULL;
    int ret = vmm_request(socket_path, "GET", "/metrics", NULL, timeout_ms, &metrics, err);
    if (!ret)
        vmm_read_traffic(metrics, ret_traffic);
    return ret;
}

static void snapshot_path(const char *disk, char path[128])
{
    snprintf(path, 128, "/drives/%.64s/snapshot", disk);
}

int vmm_snapshot_create(const char *socket_path, const char *disk, const char *name, struct err *err)
{
    char path[128];
    snapshot_path(disk, path);
    return send_body(socket_path, "PUT", path, json_pack("{s:s}", "name", name), SNAPSHOT_TIMEOUT_MS, err);
}

int vmm_snapshot_remove(const char *socket_path, const char *disk, const char *name, struct err *err)
{
    char path[128];
    snapshot_path(disk, path);
    return send_body(socket_path, "PATCH", path, json_pack("{s:s, s:s}", "action", "Delete", "name", name),
                     SNAPSHOT_TIMEOUT_MS, err);
}

int vmm_snapshot_list(const char *socket_path, const char *disk, json_t **ret_list, struct err *err)
{
    char path[128];
    own_json json_t *answer = NULL;
    snapshot_path(disk, path);
    int ret = vmm_request(socket_path, "GET", path, NULL, TIMEOUT_MS, &answer, err);
    if (ret < 0)
        return ret;
    json_t *list = json_object_get(answer, "snapshots");
    if (!json_is_array(list))
        return err_say(err, EPROTO, "machine's API: that is no list of snapshots");
    *ret_list = json_incref(list);
    return 0;
}
