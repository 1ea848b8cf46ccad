/* Frames between the host and the agent in a guest: bytes on a stream of virtio-vsock, one connection a session. */
#pragma once

#include <stdint.h>

#define AGENT_PORT 1024           /* vsock port that the agent listens on */
#define AGENT_PAYLOAD_MAX 65536u  /* bytes behind a header */

enum agent_frame_type {
    AGENT_REQUEST = 1, /* JSON: {"op": ...}; first of a session */
    AGENT_REPLY,       /* JSON: {"ok": true, ...} or {"error": "..."} */
    AGENT_DATA_IN,     /* bytes for standard input, or of a file put */
    AGENT_DATA_OUT,
    AGENT_DATA_ERR,
    AGENT_CLOSE_IN,    /* end of input */
    AGENT_RESIZE,      /* JSON: {"rows", "cols"} */
    AGENT_SIGNAL,      /* JSON: {"signal": "TERM"} */
    AGENT_EXIT,        /* JSON: {"code": 0..255}; last of a session */
};

struct agent_header {
    uint32_t len_bytes; /* of the payload; little-endian */
    uint8_t type;       /* enum agent_frame_type */
} __attribute__((packed));
