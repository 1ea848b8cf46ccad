/* Whole streams through a session: files into and out of a guest. */
#include "control/agent.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/own.h"

#define STRAY_FRAMES_MAX 1000 /* frames that bring nothing forward: each starts the time for the next */

/* What the guest's side said last on its standard error, for the message of a failure. */
struct complaint {
    unsigned stray_frames;
    char text[161];
};

static int take_stray(struct complaint *c, const struct agent_frame *frame, struct err *err)
{
    if (++c->stray_frames > STRAY_FRAMES_MAX)
        return err_say(err, EPROTO, "the guest's agent talks without end");
    if (frame->type != AGENT_DATA_ERR)
        return 0;
    size_t len = 0;
    for (; len < frame->len_bytes && len < sizeof c->text - 1 && frame->data[len] != '\n'; len++) {
        uint8_t byte = frame->data[len];
        c->text[len] = byte < ' ' || byte == 0x7f ? '?' : (char)byte;
    }
    c->text[len] = 0;
    return 0;
}

static int finish(const struct agent_frame *frame, const struct complaint *c, struct err *err)
{
    int code = 0;
    int r = agent_exit_code(frame, &code, err);
    if (r < 0)
        return r;
    if (code)
        return err_say(err, EREMOTEIO, "%s", c->text[0] ? c->text : "the guest's agent failed without a word");
    return 0;
}

static int write_all(int fd, const uint8_t *data, size_t len, struct err *err)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, errno, "write what the guest sent");
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

/* One frame of a session that only hears of its end; 1 when that has come. */
static int take_answer(struct agent_session *session, unsigned timeout_ms, struct complaint *c, struct err *err)
{
    struct agent_frame frame;
    int r = agent_receive(session, &frame, timeout_ms, err);
    if (r == 0)
        return err_say(err, ECONNRESET, "the guest's agent closed the session");
    if (r < 0)
        return r;
    if (frame.type != AGENT_EXIT)
        return take_stray(c, &frame, err);
    r = finish(&frame, c, err);
    return r < 0 ? r : 1;
}

int agent_copy_in(struct agent_session *session, int fd, unsigned timeout_ms, struct err *err)
{
    own_free uint8_t *buffer = malloc(AGENT_PAYLOAD_MAX);
    if (!buffer)
        return err_set(err, ENOMEM, "copy to the guest");
    struct complaint c = {0};
    for (;;) {
        int r = take_answer(session, 0, &c, err); /* it may have given up */
        if (r != -EAGAIN && r != 0)
            return r < 0 ? r : err_say(err, EPROTO, "the guest's agent ended before it had all");
        ssize_t n = read(fd, buffer, AGENT_PAYLOAD_MAX);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, errno, "read what the guest is to get");
        r = agent_send(session, n ? AGENT_DATA_IN : AGENT_CLOSE_IN, buffer, (size_t)n, timeout_ms, err);
        if (r < 0)
            return r;
        if (n == 0)
            break;
    }
    int r;
    do
        r = take_answer(session, timeout_ms, &c, err);
    while (r == 0);
    return r < 0 ? r : 0;
}

int agent_copy_out(struct agent_session *session, int fd, uint64_t max_bytes, unsigned timeout_ms, struct err *err)
{
    struct complaint c = {0};
    for (uint64_t total = 0;;) {
        struct agent_frame frame;
        int r = agent_receive(session, &frame, timeout_ms, err);
        if (r <= 0)
            return r < 0 ? r : err_say(err, ECONNRESET, "the guest's agent closed the session");
        if (frame.type == AGENT_EXIT)
            return finish(&frame, &c, err);
        total += frame.type == AGENT_DATA_OUT ? frame.len_bytes : 0;
        if (total > max_bytes)
            return err_say(err, EFBIG, "the guest sent more than the %llu bytes allowed",
                           (unsigned long long)max_bytes);
        if (frame.type == AGENT_DATA_OUT && frame.len_bytes)
            r = write_all(fd, frame.data, frame.len_bytes, err);
        else
            r = take_stray(&c, &frame, err);
        if (r < 0)
            return r;
    }
}
