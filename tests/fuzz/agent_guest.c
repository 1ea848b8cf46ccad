/* All that the agent in a guest parses: requests and the processes they describe, and tar archives. The first byte chooses. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent/process_spec.h"
#include "agent/tar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t left;
};

static ssize_t read_input(void *arg, void *to, size_t len)
{
    struct input *in = arg;
    size_t n = len < in->left ? len : in->left;
    memcpy(to, in->data, n);
    in->data += n;
    in->left -= n;
    return (ssize_t)n;
}

static void read_archive(struct input in)
{
    static struct tar_entry entry;
    struct tar_reader reader = {.read = read_input, .arg = &in};
    struct err err;
    char buffer[1000];
    while (tar_read_next(&reader, &entry, &err) > 0) {
        if (strlen(entry.name) >= PATH_MAX || strlen(entry.link) >= PATH_MAX)
            abort();
        if (entry.size_bytes % 2 && tar_read_data(&reader, buffer, sizeof buffer, &err) < 0)
            break;
    }
}

static void take_request(const struct agent_frame *frame)
{
    struct err err;
    int number;
    json_t *json = agent_json_load(frame, &err);
    struct process_spec spec;
    if (process_spec_load(json, json_object_get(json, "base"), &spec, &err) == 0)
        process_spec_free(&spec);
    if (process_signal(json_object_get(json, "signal"), &number, &err) == 0 && (number < 1 || number > 64))
        abort();
    json_decref(json);
}

static void read_frames(struct input in)
{
    static struct agent_reader reader;
    reader = (struct agent_reader){0};
    reader.end = (size_t)read_input(&in, reader.bytes, sizeof reader.bytes);
    struct agent_frame frame;
    struct err err;
    while (agent_reader_next(&reader, &frame, &err) > 0)
        take_request(&frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    struct input in = {data + 1, size - 1};
    if (data[0] % 2)
        read_archive(in);
    else
        read_frames(in);
    return 0;
}
