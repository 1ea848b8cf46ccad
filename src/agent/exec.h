/* Sessions with a process of their own: exec, and put and get, whose process is the agent's own code (files.h). */
#pragma once

#include <jansson.h>
#include "agent/session.h"

must_check int exec_open(struct session *s, const json_t *request, struct err *err);
must_check int put_open(struct session *s, const json_t *request, struct err *err);
must_check int get_open(struct session *s, const json_t *request, struct err *err);
bool exec_on_frame(struct session *s, const struct agent_frame *frame);
void exec_on_room(struct session *s);
void exec_close(struct session *s);

/* Input for a child: DATA_IN, CLOSE_IN, RESIZE, SIGNAL. False when it has enough for now. */
bool child_on_frame(struct child *child, const struct agent_frame *frame);
