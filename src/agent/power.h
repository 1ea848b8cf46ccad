/* The way down: the main process asked, then all killed, file systems written, power off. */
#pragma once

#include <jansson.h>
#include "agent/session.h"

must_check int power_create(struct agent *agent, struct err *err);
/* The main process has ended: says so on the serial console; in a microVM, power off follows after 2 s. */
void power_main_ended(struct agent *agent, int code);
/* The operation. */
must_check int shutdown_open(struct session *s, const json_t *request, struct err *err);
/* As init: nothing can be run here. Says why, and powers off. */
_Noreturn void power_give_up(const struct err *err);
