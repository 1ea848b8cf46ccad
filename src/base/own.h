/* Ownership: variables that release what they own when they leave scope.
 * `own_fd int fd = -1;`  `own_free char *p = NULL;`  `return TAKE(p);` */
#pragma once

#include <stdlib.h>
#include <unistd.h>

static inline void own_free_cleanup(void *p)
{
    free(*(void **)p);
}

static inline void own_fd_cleanup(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

#define own_free __attribute__((cleanup(own_free_cleanup)))
#define own_fd __attribute__((cleanup(own_fd_cleanup)))

/* Yields the pointer and leaves NULL behind, so that the cleanup does nothing. */
#define TAKE(p)                                                                                              \
    ({                                                                                                       \
        __typeof__(p) taken_ = (p);                                                                          \
        (p) = NULL;                                                                                          \
        taken_;                                                                                              \
    })

#define TAKE_FD(fd)                                                                                          \
    ({                                                                                                       \
        int taken_ = (fd);                                                                                   \
        (fd) = -1;                                                                                           \
        taken_;                                                                                              \
    })
