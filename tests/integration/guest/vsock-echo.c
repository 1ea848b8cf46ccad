/* Guest side of the vsock test. vsock-echo listen PORT: echo what one peer sends, until it closes its side.
 * vsock-echo connect PORT TEXT: send TEXT to the host's PORT and print what comes back. */
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what)
{
    perror(what);
    return 1;
}

static int listen_and_echo(int fd, struct sockaddr_vm *addr)
{
    char buf[65536];
    ssize_t n;

    addr->svm_cid = VMADDR_CID_ANY;
    if (bind(fd, (struct sockaddr *)addr, sizeof *addr) || listen(fd, 1))
        return fail("bind");
    puts("vsock-echo: listening");
    fflush(stdout);
    int peer = accept(fd, NULL, NULL);
    if (peer < 0)
        return fail("accept");
    while ((n = read(peer, buf, sizeof buf)) > 0)
        for (ssize_t done = 0, w; done < n; done += w)
            if ((w = write(peer, buf + done, (size_t)(n - done))) <= 0)
                return fail("write");
    return n ? fail("read") : 0;
}

static int connect_and_send(int fd, struct sockaddr_vm *addr, const char *text)
{
    char buf[4096];
    ssize_t n;

    addr->svm_cid = VMADDR_CID_HOST;
    if (connect(fd, (struct sockaddr *)addr, sizeof *addr))
        return fail("connect");
    if (write(fd, text, strlen(text)) < 0 || shutdown(fd, SHUT_WR))
        return fail("write");
    while ((n = read(fd, buf, sizeof buf)) > 0)
        fwrite(buf, 1, (size_t)n, stdout);
    puts("");
    return n ? fail("read") : 0;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0)
        return fail("socket");
    struct sockaddr_vm addr = {.svm_family = AF_VSOCK, .svm_port = (unsigned)atoi(argv[2])};
    if (!strcmp(argv[1], "listen"))
        return listen_and_echo(fd, &addr);
    return argc < 4 ? 2 : connect_and_send(fd, &addr, argv[3]);
}
