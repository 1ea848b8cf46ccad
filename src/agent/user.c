#include "agent/user.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_SIZE 4096
#define NAME_SIZE 256

/* Splits a line of "a:b:c" in place; returns how many fields there are, at most `max`. */
static unsigned split(char *line, char **fields, unsigned max)
{
    line[strcspn(line, "\n")] = 0;
    unsigned count = 0;
    for (char *rest = line; rest && count < max;)
        fields[count++] = strsep(&rest, ":");
    return count;
}

static bool is_id(const char *text, unsigned *ret_id)
{
    char *end;
    errno = 0;
    unsigned long v = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || v > UINT_MAX - 1)
        return false;
    *ret_id = (unsigned)v;
    return true;
}

/* passwd(5): name:password:uid:gid:comment:home:shell. False when no line has that name or number; else `name` becomes the name. */
static bool find_passwd(char name[NAME_SIZE], struct user *user)
{
    FILE *f = fopen("/etc/passwd", "re");
    if (!f)
        return false;
    char line[LINE_SIZE], *field[7];
    unsigned wanted, uid, gid;
    bool is_number = is_id(name, &wanted), is_found = false;
    while (!is_found && fgets(line, sizeof line, f)) {
        if (split(line, field, 7) < 6 || !is_id(field[2], &uid) || !is_id(field[3], &gid))
            continue;
        is_found = is_number ? uid == wanted : !strcmp(field[0], name);
        if (!is_found)
            continue;
        snprintf(name, NAME_SIZE, "%s", field[0]);
        user->uid = uid;
        user->gid = gid;
        snprintf(user->home, sizeof user->home, "%s", field[5][0] == '/' ? field[5] : "/");
    }
    fclose(f);
    return is_found;
}

static bool is_member(char *members, const char *name)
{
    for (char *rest = members, *member; (member = strsep(&rest, ","));)
        if (!strcmp(member, name))
            return true;
    return false;
}

/* group(5): name:password:gid:members. With `member`, adds the groups that it is in; else finds one by its name. */
static bool find_group(const char *name, const char *member, struct user *user)
{
    FILE *f = fopen("/etc/group", "re");
    if (!f)
        return false;
    char line[LINE_SIZE], *field[4];
    unsigned gid;
    bool is_found = false;
    while (!is_found && fgets(line, sizeof line, f)) {
        if (split(line, field, 4) < 4 || !is_id(field[2], &gid))
            continue;
        if (member) {
            if (is_member(field[3], member) && gid != user->gid && user->group_count < USER_GROUPS_MAX)
                user->groups[user->group_count++] = gid;
        } else if (!strcmp(field[0], name)) {
            user->gid = gid;
            is_found = true;
        }
    }
    fclose(f);
    return is_found;
}

int user_find(const char *text, struct user *ret_user, struct err *err)
{
    char name[NAME_SIZE];
    size_t len = strlen(text);
    if (len >= sizeof name)
        return err_say(err, EINVAL, "the user's name is too long");
    memcpy(name, text, len + 1);
    char *group = strchr(text, ':') ? strdupa(strchr(text, ':') + 1) : NULL;
    name[strcspn(name, ":")] = 0;
    struct user user = {.home = "/"};
    unsigned id;
    if (!name[0])
        memcpy(name, "0", 2);
    bool is_known = find_passwd(name, &user);
    if (!is_known && !is_id(name, &user.uid))
        return err_say(err, ENOENT, "user '%.80s' is not in the image's /etc/passwd; give a number or another name", name);
    if (!is_known && user.uid == 0)
        memcpy(user.home, "/root", 6);
    if (group && is_id(group, &id))
        user.gid = id;
    else if (group && !find_group(group, NULL, &user))
        return err_say(err, ENOENT, "group '%.80s' is not in the image's /etc/group; give a number or another name", group);
    user.groups[user.group_count++] = user.gid;
    if (!group && is_known)
        find_group(NULL, name, &user);
    *ret_user = user;
    return 0;
}
