/* The main process: the one that `start` names, whose end is the machine's. Its output goes to the console (hvc0: the log) and to
 * attached sessions; the last AGENT_HISTORY_MAX bytes are kept for those to come. A session that takes nothing for
 * 10 s no longer holds it up: output is left out for that session until it reads again, and EXIT says how much. */
#pragma once

#include <jansson.h>
#include "agent/session.h"

must_check int primary_create(struct agent *agent, struct err *err);
/* Starts it; `s` gets the reply. */
must_check int primary_start(struct session *s, const json_t *process, struct err *err);
bool primary_is_running(const struct primary *p);
/* Its exit code; -1 while it runs or before it was started. */
int primary_code(const struct primary *p);
/* The variables it was started with, or NULL: an exec's come on top. */
const json_t *primary_env(const struct primary *p);
pid_t primary_pid(const struct primary *p);
void primary_signal(struct primary *p, int signal);

/* The session that started it is closed. */
void primary_forget(struct session *s);

/* Operations. */
must_check int attach_open(struct session *s, const json_t *request, struct err *err);
bool attach_on_frame(struct session *s, const struct agent_frame *frame);
void attach_on_room(struct session *s);
void attach_close(struct session *s);
must_check int wait_open(struct session *s, const json_t *request, struct err *err);
