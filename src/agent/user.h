/* Users by the image's own /etc/passwd and /etc/group, which are read as plain bounded text: no name service. */
#pragma once

#include <limits.h>
#include <sys/types.h>
#include "base/err.h"

#define USER_GROUPS_MAX 64

struct user {
    uid_t uid;
    gid_t gid;
    unsigned group_count;
    gid_t groups[USER_GROUPS_MAX]; /* supplementary ones, beginning with gid */
    char home[PATH_MAX];           /* "/" when unknown */
};

/* `text`: "name", "uid", "name:group", "uid:gid" (OCI image configuration, "User"). A number need not be in the files; a
 * group that is given replaces the supplementary ones. */
must_check int user_find(const char *text, struct user *ret_user, struct err *err);
