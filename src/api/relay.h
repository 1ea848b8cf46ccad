/* Between a client's WebSocket and an instance: an agent's session, or the bytes of a console. Each returns when one side has
 * ended, or the platform stops. Neither side can make the relay hold more than some messages for the other: it reads from
 * one only while the other takes. */
#pragma once

#include "api/platform.h"
#include "api/websocket.h"
#include "control/agent.h"

/* stdin, resize and signal to the guest; stdout, stderr and {"exit": N} to the client. */
void relay_session(const struct platform *platform, struct websocket *websocket, struct agent_session *session);
/* `fd`: a connected stream socket, borrowed. */
void relay_bytes(const struct platform *platform, struct websocket *websocket, int fd);
/* The first message of a client, which must be JSON of at most 64 KiB; NULL when it is none, or did not come in time.
 * New reference. */
json_t *relay_first_message(const struct platform *platform, struct websocket *websocket, unsigned timeout_ms);
