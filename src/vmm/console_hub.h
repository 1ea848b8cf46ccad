/* A console for several: clients of a listening unix socket see what the guest writes from then on and may type; all of it
 * is also kept in a log of bounded size.
 *
 * The guest waits for a client no longer than CONSOLE_PATIENCE_MS: one that does not read is dropped then. Everything runs
 * in the loop's thread. */
#pragma once

#include "base/err.h"
#include "base/loop.h"

#define CONSOLE_CLIENTS_MAX 8
#define CONSOLE_LOG_MAX (8u << 20) /* bytes; a log that reaches it loses its older half */

#define CONSOLE_PATIENCE_MS 500

struct console_hub;

/* `socket`: path, or "fd:N", a listening socket; `log`: path, or "fd:N", a regular file open for reading and writing; NULL: without.
 * *ret_end is the console's end, not blocking, for both ways, and the caller's. */
must_check int console_hub_create(const char *socket, const char *log, struct loop *loop, struct console_hub **ret_hub, int *ret_end,
                                  struct err *err);
/* After its end was closed; hands on what was written to it. NULL is fine. */
void console_hub_free(struct console_hub *hub);
