/* polder-vmm's API as the controller uses it: one HTTP request a connection on its unix socket. A guest that broke out of its
 * machine answers here, so answers are bounded, waits end, and what is said is only data.
 *
 * Errors: -ECONNREFUSED or -ENOENT when nothing listens, -ETIMEDOUT, -EPROTO for what is no answer, -EREMOTEIO when the
 * machine refused (its text in `err`). Any thread. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define VMM_ANSWER_MAX (1u << 20) /* bytes */

enum vmm_state { VMM_NOT_STARTED, VMM_RUNNING, VMM_PAUSED };

/* `body` may be NULL, as may `ret_answer` (NULL when the answer has no body). */
must_check int vmm_request(const char *socket_path, const char *method, const char *path, const json_t *body,
                           unsigned timeout_ms, json_t **ret_answer, struct err *err);
must_check int vmm_get_state(const char *socket_path, enum vmm_state *ret_state, struct err *err);
/* Pausing what is paused and resuming what runs are fine. */
must_check int vmm_set_paused(const char *socket_path, bool paused, struct err *err);
must_check int vmm_power_button(const char *socket_path, struct err *err);

/* Bytes since the machine's start, all devices of a kind together; as the guest sees them (rx: what it received). */
struct vmm_traffic {
    uint64_t net_rx, net_tx, disk_read, disk_written;
};
must_check int vmm_get_traffic(const char *socket_path, unsigned timeout_ms, struct vmm_traffic *ret_traffic, struct err *err);
/* The same from the answer of GET /metrics; what is no number counts as 0. */
void vmm_read_traffic(const json_t *metrics, struct vmm_traffic *ret_traffic);

/* Snapshots inside of a disk's qcow2 image. */
must_check int vmm_snapshot_create(const char *socket_path, const char *disk, const char *name, struct err *err);
must_check int vmm_snapshot_remove(const char *socket_path, const char *disk, const char *name, struct err *err);
/* Array of {"id", "name", "date_s", "size"}. */
must_check int vmm_snapshot_list(const char *socket_path, const char *disk, json_t **ret_list, struct err *err);

/* One answer: status line, header, body; the bytes need not end in NUL. Yields its status and where the body is. -EPROTO. */
must_check int vmm_parse_answer(const char *bytes, size_t len_bytes, int *ret_status, size_t *ret_body, struct err *err);
/* The same, and its body: *ret_answer (may be NULL) as of vmm_request. */
must_check int vmm_read_answer(const char *bytes, size_t len_bytes, json_t **ret_answer, struct err *err);
