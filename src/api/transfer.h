/* Answers that a function writes to a descriptor: archives and disk images, of any length, in bounded memory. */
#pragma once

#include "api/request.h"

struct transfer {
    struct platform *platform;
    char name[768], detail[4096];
};

/* Writes to `fd`; in a thread of its own. An error breaks the answer off, so that the client sees that it is not whole. */
typedef int transfer_fn(const struct transfer *transfer, int fd, struct err *err);

/* Waits until the function has written something or failed: an error before the first byte is an answer of its own. */
must_check int request_reply_transfer(struct request *request, transfer_fn *fn, const char *name, const char *detail,
                                      struct err *err);
/* For the `cancelled` of progress structs: `platform` is a struct platform. */
bool transfer_stopping(void *platform);
