#include "agent/exec.h"

#include <errno.h>

#include "agent/child.h"
#include "agent/files.h"
#include "agent/primary.h"
#include "agent/process_spec.h"

static void on_start(void *arg, const char *error, int code)
{
    struct session *s = arg;
    if (error)
        session_refuse(s, error, code);
    else
        session_reply(s, json_pack("{s:i}", "pid", (int)child_pid(s->child)));
}

static bool has_room(void *arg)
{
    return session_has_room(arg);
}

static void on_output(void *arg, enum agent_frame_type stream, const uint8_t *data, size_t len_bytes)
{
    session_send(arg, stream, data, len_bytes);
}

static void on_input_room(void *arg)
{
    session_resume(arg);
}

static void on_exit_of_child(void *arg, int code)
{
    session_exit(arg, code);
}

static const struct child_owner owner = {on_start, has_room, on_output, on_input_room, on_exit_of_child};

int exec_open(struct session *s, const json_t *request, struct err *err)
{
    struct process_spec spec;
    int r = process_spec_load(request, primary_env(s->agent->primary), &spec, err);
    if (r < 0)
        return r;
    r = child_start(s->agent->loop, &spec.child, &owner, s, &s->child, err);
    process_spec_free(&spec);
    return r;
}

static int open_files(struct session *s, const json_t *request, int (*run)(const char *), struct err *err)
{
    const char *path = json_string_value(json_object_get(request, "path"));
    if (!path || path[0] != '/')
        return err_say(err, EINVAL, "\"path\" is not an absolute path");
    struct child_spec spec = {.run = run, .path = path, .use_stdin = true};
    return child_start(s->agent->loop, &spec, &owner, s, &s->child, err);
}

int put_open(struct session *s, const json_t *request, struct err *err)
{
    return open_files(s, request, files_put, err);
}

int get_open(struct session *s, const json_t *request, struct err *err)
{
    return open_files(s, request, files_get, err);
}

static bool resize(struct child *child, const struct agent_frame *frame)
{
    json_t *json = agent_json_load(frame, NULL);
    unsigned rows = process_number(json, "rows", 10000, 0), cols = process_number(json, "cols", 10000, 0);
    if (rows && cols)
        child_resize(child, rows, cols);
    json_decref(json);
    return true;
}

static bool send_signal(struct child *child, const struct agent_frame *frame)
{
    json_t *json = agent_json_load(frame, NULL);
    int number;
    if (process_signal(json_object_get(json, "signal"), &number, NULL) == 0)
        child_signal(child, number);
    json_decref(json);
    return true;
}

bool child_on_frame(struct child *child, const struct agent_frame *frame)
{
    if (frame->type == AGENT_DATA_IN)
        return child_input(child, frame->data, frame->len_bytes);
    if (frame->type == AGENT_RESIZE)
        return resize(child, frame);
    if (frame->type == AGENT_SIGNAL)
        return send_signal(child, frame);
    child_close_input(child);
    return true;
}

bool exec_on_frame(struct session *s, const struct agent_frame *frame)
{
    return child_on_frame(s->child, frame);
}

void exec_on_room(struct session *s)
{
    if (s->child)
        child_resume(s->child);
}

void exec_close(struct session *s)
{
    child_free(s->child);
}
