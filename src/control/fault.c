#include "control/fault.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

const char *const fault_names[] = {
    /* create */
    "create.image",     /* the image is here */
    "instance.create",  /* the document is stored */
    /* start */
    "instance.start",   /* it shall run */
    "instance.launch",  /* it is starting */
    "launch.folders",   /* its folders are there, and its lock */
    "launch.disk",      /* its root disk is made */
    "launch.volume",    /* a volume is attached */
    "launch.network",   /* an interface is attached */
    "launch.consoles",  /* sockets listen, logs are open */
    "launch.process",   /* polder-vmm was started; nobody knows */
    "launch.pid",       /* its pid is noted in the run folder */
    "instance.launched", /* and in the document */
    "greet.done",       /* the guest was told what to run */
    "instance.running",
    /* stop */
    "instance.stop",     /* it shall not run */
    "instance.stopping",
    "stop.asked",        /* the guest was asked to end */
    "stop.told",         /* it was told to end at once */
    "stop.killed",       /* the process was killed */
    "end.released",      /* networks, volumes and cgroup were given back */
    "instance.end",
    /* remove */
    "instance.remove",   /* it shall go */
    "clean.network",     /* its lease is gone */
    "clean.run",         /* its folder of sockets is gone */
    "clean.state",       /* its disk is gone */
    "instance.removed",
    NULL,
};

static const char *armed; /* NULL: none */

int fault_arm(const char *name, struct err *err)
{
    for (const char *const *one = fault_names; *one; one++) {
        if (!strcmp(*one, name)) {
            armed = *one;
            return 0;
        }
    }
    return err_say(err, EINVAL, "there is no point '%.60s'", name);
}

void fault_here(const char *name)
{
    if (armed && !strcmp(armed, name))
        kill(getpid(), SIGKILL);
}
