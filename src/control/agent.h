/* The host's side of the guest agent: sessions through polder-vmm's vsock socket (src/agent/protocol.h says what is spoken).
 *
 * The agent is a guest's program and thus hostile: frames and JSON are bounded, every wait ends at its deadline, and
 * text it sends is only data. A session is used by one thread at a time. Timeouts are for the whole call.
 *
 * Errors: -ETIMEDOUT when time is over, -ECONNREFUSED when no agent listens, -EPROTO for what is no answer, -EREMOTEIO
 * when the agent refused (its text in `err`, and the exit code of a command that it could not run), other -errno of the host. */
#pragma once

#include <jansson.h>
#include "agent/protocol.h"
#include "base/err.h"

struct agent_session;

/* Connects to the agent behind the vmm's vsock socket (Firecracker's handshake, "CONNECT 1024"). While the guest still boots,
 * tries again until the time is over. */
must_check int agent_connect(const char *vsock_path, unsigned timeout_ms, struct agent_session **ret_session,
                             struct err *err);
/* Takes a connected stream socket instead: what agent_connect() does behind the handshake. Owns `fd` from then on. */
must_check int agent_adopt(int fd, struct agent_session **ret_session, struct err *err);
/* Closes it: an exec's process gets SIGHUP. NULL is fine. */
void agent_close(struct agent_session *session);
/* To poll for input or output; not to be read or written directly. A frame may wait in the session while the descriptor is
 * not readable: call agent_receive() with timeout 0 until it says -EAGAIN before polling. */
int agent_fd(const struct agent_session *session);

/* Sends one frame, len_bytes ≤ AGENT_PAYLOAD_MAX. A call that failed in the midst leaves the session unusable. */
must_check int agent_send(struct agent_session *session, enum agent_frame_type type, const void *data,
                          size_t len_bytes, unsigned timeout_ms, struct err *err);
must_check int agent_resize(struct agent_session *session, unsigned rows, unsigned cols, unsigned timeout_ms,
                            struct err *err);
/* `signal`: "TERM", "SIGTERM" or "15". */
must_check int agent_signal(struct agent_session *session, const char *signal, unsigned timeout_ms, struct err *err);
/* Receives one frame that a guest may send (REPLY, DATA_OUT, DATA_ERR, EXIT): 1, 0 when the guest closed the session, -EAGAIN
 * with timeout 0 when none is there. ret_frame->data is valid until the next call. */
must_check int agent_receive(struct agent_session *session, struct agent_frame *ret_frame, unsigned timeout_ms,
                             struct err *err);
/* The code of an EXIT frame, 0..255. */
must_check int agent_exit_code(const struct agent_frame *frame, int *ret_code, struct err *err);

/* Sends a request, `params` (borrowed, NULL for none) with "op" set, and takes the reply. ret_reply (may be NULL) is owned by
 * the caller. Where the agent refused, `*ret_reply` is set too if it is not NULL: {"error", "code"?}. */
must_check int agent_request(struct agent_session *session, const char *op, const json_t *params, unsigned timeout_ms,
                             json_t **ret_reply, struct err *err);
/* Connects and requests, and leaves the session open for what follows: attach, exec, put, get, wait, shutdown. */
must_check int agent_open(const char *vsock_path, const char *op, const json_t *params, unsigned timeout_ms,
                          struct agent_session **ret_session, json_t **ret_reply, struct err *err);
/* Connects, requests and closes: start, stats, time, signal, ping. */
must_check int agent_call(const char *vsock_path, const char *op, const json_t *params, unsigned timeout_ms,
                          json_t **ret_reply, struct err *err);

/* Sends all of `fd` as DATA_IN and CLOSE_IN, and waits for EXIT: behind agent_open("put"). The timeout is for each frame. A
 * code other than 0 is an error with what the agent said. */
must_check int agent_copy_in(struct agent_session *session, int fd, unsigned timeout_ms, struct err *err);
/* Writes all DATA_OUT to `fd` until EXIT: behind agent_open("get"). At most `max_bytes`. */
must_check int agent_copy_out(struct agent_session *session, int fd, uint64_t max_bytes, unsigned timeout_ms,
                              struct err *err);
/* Waits for EXIT, dropping output: behind agent_open("wait") or "shutdown". */
must_check int agent_wait(struct agent_session *session, unsigned timeout_ms, int *ret_code, struct err *err);
