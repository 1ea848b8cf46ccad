/* Frames between the host and the agent in a guest: bytes on a stream of virtio-vsock, one connection a session.
 *
 * The host connects, sends one REQUEST and gets one REPLY. What follows depends on the request's "op":
 *
 *   ping      {}                                          -> {"ok", "version", "service", "state", "pid"?, "code"?}
 *   start     hostname, networks[{mac, address, gateway?, dns[]}], mounts[{device, path, fs, read_only}], process, time_ns,
 *             hosts?[{address, name}]                     -> {"ok", "pid"} | {"error", "code": 126|127|125}
 *   attach    stdin, history                              -> {"ok"}; then DATA_IN, CLOSE_IN, RESIZE, SIGNAL from the host,
 *                                                            DATA_OUT, DATA_ERR and at last EXIT from the guest
 *   exec      process                                     -> {"ok", "pid"} | {"error", "code"}; then as attach
 *   put       path (a directory; made if missing)         -> {"ok"}; DATA_IN: a tar stream, CLOSE_IN; EXIT when it is unpacked
 *   get       path                                        -> {"ok"}; DATA_OUT: a tar stream whose first name is the path's
 *                                                            last part; EXIT. What went wrong is a line in DATA_ERR.
 *   wait      {}                                          -> {"ok"}; EXIT when the main process has ended
 *   signal    signal ("TERM", "SIGTERM" or a number)      -> {"ok"}; to the main process
 *   stats     {}                                          -> {"ok", "uptime_us", "processes", "cpu", "memory", "root", "disks",
 *                                                            "networks"}
 *   time      time_ns (since 1970)                        -> {"ok"}
 *   shutdown  timeout_ms, signal?                         -> {"ok"}; EXIT of the main process if there is one; power off
 *
 * A process is {args[], env[], user, cwd, tty, rows, cols, stdin}: all but args optional. `mounts` name devices "vdc";
 * addresses have a prefix ("10.88.0.2/24"). EXIT carries 0..255, 128+N for a process that signal N ended.
 * `history` of attach sends the last AGENT_HISTORY_MAX bytes of output first.
 *
 * Nobody believes the other: a frame that is too long, of a wrong type for its direction or with malformed JSON ends
 * the session. One thread at a time uses a reader. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>
#include "base/err.h"

#define AGENT_PORT 1024            /* vsock port that the agent listens on */
#define AGENT_PAYLOAD_MAX 65536u   /* bytes behind a header */
#define AGENT_JSON_DEPTH_MAX 16    /* nested arrays and objects */
#define AGENT_SESSIONS_MAX 64      /* at once; the next is refused with an error */
#define AGENT_HISTORY_MAX 65536u   /* bytes of the main process's output kept for `attach` */
#define AGENT_NOT_RUNNABLE 126     /* "code" of a refused `start` or `exec`: the program is there, but cannot be run */
#define AGENT_NOT_FOUND 127        /* ... there is no such program */
#define AGENT_EXIT_LINE "polder-agent: exit " /* on ttyS0, then the code: the main process has ended */

enum agent_frame_type {
    AGENT_REQUEST = 1, /* JSON: {"op": ...}; first of a session */
    AGENT_REPLY,       /* JSON: {"ok": true, ...} or {"error": "..."} */
    AGENT_DATA_IN,     /* bytes for standard input, or of a file put */
    AGENT_DATA_OUT,
    AGENT_DATA_ERR,
    AGENT_CLOSE_IN,    /* end of input */
    AGENT_RESIZE,      /* JSON: {"rows", "cols"} */
    AGENT_SIGNAL,      /* JSON: {"signal": "TERM"} */
    AGENT_EXIT,        /* JSON: {"code": 0..255, "lost_bytes"?}; last of a session */
    AGENT_FRAME_TYPES, /* one more than the last */
};

struct agent_header {
    uint32_t len_bytes; /* of the payload; little-endian */
    uint8_t type;       /* enum agent_frame_type */
} __attribute__((packed));

struct agent_frame {
    enum agent_frame_type type;
    uint32_t len_bytes;
    const uint8_t *data; /* in the reader, until it reads again; not terminated */
};

/* Bytes received and not yet taken: never more than one whole frame of the largest size. Zero-initialized. */
struct agent_reader {
    size_t start, end; /* what is there lies between */
    uint8_t bytes[sizeof(struct agent_header) + AGENT_PAYLOAD_MAX];
};

/* Reads what is there from `fd`: the number of bytes, 0 at the end of the stream, -EAGAIN or another -errno. Call it only when
 * agent_reader_next() has said 0. */
must_check int agent_reader_fill(struct agent_reader *reader, int fd);
/* Takes the next frame: 1, 0 when more bytes are needed, -EPROTO for what is no frame (`err` says why). */
must_check int agent_reader_next(struct agent_reader *reader, struct agent_frame *ret_frame, struct err *err);

/* Writes the header of a frame; len_bytes is at most AGENT_PAYLOAD_MAX. */
void agent_header_encode(struct agent_header *header, enum agent_frame_type type, size_t len_bytes);

/* The JSON object in a frame; NULL (`err` says why) for anything else, nesting beyond AGENT_JSON_DEPTH_MAX or repeated
 * keys. The caller owns the reference. */
json_t *agent_json_load(const struct agent_frame *frame, struct err *err);
