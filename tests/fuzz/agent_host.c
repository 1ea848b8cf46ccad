/* All that a guest's agent may send, as the host takes it: a reply, and then a file's stream or the end of a process. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control/agent.h"

#define TIMEOUT_MS 5000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fds[2], code;
    struct agent_session *session = NULL;
    if (size < 1 || size > 100000 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return 0;
    ssize_t n = send(fds[1], data + 1, size - 1, MSG_DONTWAIT);
    shutdown(fds[1], SHUT_WR); /* what the host says still goes there, and nowhere */
    if (n < 0 || agent_adopt(fds[0], &session, NULL) < 0)
        abort();
    int sink = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct err err;
    json_t *reply = NULL;
    int r = agent_request(session, "ping", NULL, TIMEOUT_MS, &reply, &err);
    json_decref(reply);
    if (r == 0 && data[0] % 3 == 0)
        r = agent_copy_out(session, sink, 50000, TIMEOUT_MS, &err);
    else if (r == 0 && data[0] % 3 == 1)
        r = agent_copy_in(session, sink, TIMEOUT_MS, &err);
    else if (r == 0)
        r = agent_wait(session, TIMEOUT_MS, &code, &err);
    if (r == -ETIMEDOUT)
        abort(); /* the guest has closed: there is nothing to wait for */
    agent_close(session);
    close(sink);
    close(fds[1]);
    return 0;
}
