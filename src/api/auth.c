#include "api/auth.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/timestamp.h"
#include "base/own.h"

#define SECRET_BYTES 32
#define PREFIX "polder_"
#define PREFIX_LEN (sizeof PREFIX - 1)
#define SECRET_LEN (PREFIX_LEN + 2 * SECRET_BYTES)
#define GROUPS_MAX 1024
#define GROUP_BYTES_MAX (1u << 20)

/* ---- unix sockets ---- */

static bool in_groups(int fd, gid_t primary, gid_t wanted)
{
    own_free gid_t *groups = calloc(GROUPS_MAX, sizeof *groups);
    socklen_t len = GROUPS_MAX * sizeof *groups;
    if (primary == wanted)
        return true;
    if (!groups || getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0)
        return false;
    for (size_t i = 0; i < len / sizeof *groups; i++)
        if (groups[i] == wanted)
            return true;
    return false;
}

bool auth_group(gid_t *ret_gid)
{
    struct group entry, *group = NULL;
    for (size_t size = 4096; size <= GROUP_BYTES_MAX; size *= 4) { /* an entry holds the names of all members */
        own_free char *buffer = malloc(size);
        int r = buffer ? getgrnam_r("polder", &entry, buffer, size, &group) : ENOMEM;
        if (r == ERANGE)
            continue;
        if (r == 0 && group)
            *ret_gid = group->gr_gid;
        return r == 0 && group;
    }
    return false;
}

static bool in_group_polder(int fd, gid_t primary)
{
    gid_t gid;
    return auth_group(&gid) && in_groups(fd, primary, gid);
}

int auth_peer(int fd, struct actor *ret_actor, struct err *err)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
        return err_set(err, errno, "peer credentials");
    if (peer.uid != 0 && peer.uid != geteuid() && !in_group_polder(fd, peer.gid))
        return err_say(err, EACCES, "user %u may not use polderd: add it to the group polder", peer.uid);
    *ret_actor = (struct actor){.origin = "unix", .role = ROLE_ADMIN};
    snprintf(ret_actor->name, sizeof ret_actor->name, "uid:%u", peer.uid);
    return 0;
}

/* ---- tokens ---- */

static void to_hex(const unsigned char *bytes, size_t count, char *text)
{
    for (size_t i = 0; i < count; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

static int hash_token(const char *token, char ret_hex[2 * SECRET_BYTES + 1], struct err *err)
{
    unsigned char digest[SECRET_BYTES];
    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, token, strlen(token), digest) < 0)
        return err_say(err, EIO, "SHA-256 cannot be had from GnuTLS");
    to_hex(digest, sizeof digest, ret_hex);
    return 0;
}

int token_make(const char *name, enum role role, const char *actor, char ret_token[static TOKEN_SIZE],
               json_t **ret_document, struct err *err)
{
    unsigned char secret[SECRET_BYTES];
    char hash[2 * SECRET_BYTES + 1], created[TIMESTAMP_SIZE];
    if (gnutls_rnd(GNUTLS_RND_KEY, secret, sizeof secret) < 0)
        return err_say(err, EIO, "random numbers cannot be had from GnuTLS");
    memcpy(ret_token, PREFIX, PREFIX_LEN);
    to_hex(secret, sizeof secret, ret_token + PREFIX_LEN);
    gnutls_memset(secret, 0, sizeof secret);
    int r = hash_token(ret_token, hash, err);
    if (r < 0)
        return r;
    timestamp_now(created);
    *ret_document = json_pack("{s:s, s:s, s:s, s:s, s:s}", "name", name, "role", role_name(role), "hash", hash, "created_at",
                              created, "created_by", actor);
    return *ret_document ? 0 : err_set(err, ENOMEM, "token");
}

/* Looks at every token, so that the time taken tells nothing about which one it is. */
static const json_t *find_token(const struct store_list *list, const char *hash)
{
    const json_t *found = NULL;
    for (size_t i = 0; i < list->count; i++) {
        const char *known = json_string_value(json_object_get(list->docs[i].value, "hash"));
        if (known && strlen(known) == strlen(hash) && gnutls_memcmp(known, hash, strlen(hash)) == 0)
            found = list->docs[i].value;
    }
    return found;
}

int auth_token(struct store *store, const char *header, struct actor *ret_actor, struct err *err)
{
    char hash[2 * SECRET_BYTES + 1];
    struct store_list list;
    if (strncmp(header, "Bearer " PREFIX, 7 + PREFIX_LEN) != 0 || strlen(header + 7) != SECRET_LEN)
        return err_say(err, EACCES, "not a token of polderd: make one with 'polder token create'");
    int r = hash_token(header + 7, hash, err);
    if (r == 0)
        r = store_list_prefix(store, "tokens/", &list, err);
    if (r < 0)
        return r;
    const json_t *token = find_token(&list, hash);
    const char *role = json_string_value(json_object_get(token, "role"));
    if (!role || !role_parse(role, &ret_actor->role))
        r = err_say(err, EACCES, "unknown token: it was removed, or is of another polderd");
    else
        snprintf(ret_actor->name, sizeof ret_actor->name, "token:%s", json_string_value(json_object_get(token, "name")));
    store_list_clear(&list);
    return r;
}

/* ---- certificates ---- */

int auth_subject(const char *common_name, const char *unit, struct actor *ret_actor, struct err *err)
{
    if (!common_name[0])
        return err_say(err, EACCES, "the client certificate has no common name (CN)");
    if (!role_parse(unit, &ret_actor->role))
        return err_say(err, EACCES, "the client certificate's OU must be viewer, operator or admin, not '%.32s'", unit);
    snprintf(ret_actor->name, sizeof ret_actor->name, "cert:%s", common_name);
    return 0;
}
