/* Frames and their JSON, for both ends: all bytes that come in are another machine's. */
#include "agent/protocol.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"

void agent_header_encode(struct agent_header *header, enum agent_frame_type type, size_t len_bytes)
{
    assert(len_bytes <= AGENT_PAYLOAD_MAX);
    store_le32(header, (uint32_t)len_bytes);
    header->type = (uint8_t)type;
}

int agent_reader_fill(struct agent_reader *reader, int fd)
{
    if (reader->start > 0) {
        memmove(reader->bytes, reader->bytes + reader->start, reader->end - reader->start);
        reader->end -= reader->start;
        reader->start = 0;
    }
    assert(reader->end < sizeof reader->bytes);
    ssize_t n;
    do
        n = read(fd, reader->bytes + reader->end, sizeof reader->bytes - reader->end);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    reader->end += (size_t)n;
    return (int)n;
}

int agent_reader_next(struct agent_reader *reader, struct agent_frame *ret_frame, struct err *err)
{
    size_t have = reader->end - reader->start;
    if (have < sizeof(struct agent_header))
        return 0;
    const uint8_t *at = reader->bytes + reader->start;
    uint32_t len = load_le32(at);
    uint8_t type = at[offsetof(struct agent_header, type)];
    if (len > AGENT_PAYLOAD_MAX)
        return err_say(err, EPROTO, "a frame of %u bytes; at most %u are allowed", len, AGENT_PAYLOAD_MAX);
    if (type < AGENT_REQUEST || type >= AGENT_FRAME_TYPES)
        return err_say(err, EPROTO, "a frame of the unknown type %u", type);
    if (have < sizeof(struct agent_header) + len)
        return 0;
    *ret_frame = (struct agent_frame){(enum agent_frame_type)type, len, at + sizeof(struct agent_header)};
    reader->start += sizeof(struct agent_header) + len;
    return 1;
}

/* Whether no bracket is nested too deeply. Looks at brackets outside of strings only; the parser does the rest. */
static bool is_shallow(const uint8_t *text, size_t len)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        if (in_string && text[i] == '\\')
            i++;
        else if (text[i] == '"')
            in_string = !in_string;
        else if (!in_string && (text[i] == '{' || text[i] == '['))
            depth++;
        else if (!in_string && (text[i] == '}' || text[i] == ']'))
            depth--;
        if (depth > AGENT_JSON_DEPTH_MAX)
            return false;
    }
    return true;
}

json_t *agent_json_load(const struct agent_frame *frame, struct err *err)
{
    if (!is_shallow(frame->data, frame->len_bytes)) {
        (void)err_say(err, EPROTO, "JSON nested more than %d deep", AGENT_JSON_DEPTH_MAX);
        return NULL;
    }
    json_error_t why;
    json_t *json = json_loadb((const char *)frame->data, frame->len_bytes, JSON_REJECT_DUPLICATES, &why);
    if (json && json_is_object(json))
        return json;
    (void)err_say(err, EPROTO, "malformed JSON: %s", json ? "not an object" : why.text);
    json_decref(json);
    return NULL;
}
