/* Who a client is: by the peer credentials of a unix socket, a bearer token, or a client certificate.
 *
 * A token is "polder_" and 64 hexadecimal digits of 256 random bits; the store keeps its SHA-256 (tokens/NAME), which
 * needs no salt and no slow hash: there is nothing to guess. Any thread. */
#pragma once

#include <sys/types.h>

#include "api/request.h"

#define TOKEN_SIZE 72 /* text of a token and its NUL */

/* The group `polder`; false: there is none. */
bool auth_group(gid_t *ret_gid);
/* Of a unix socket's other end: root, polderd's own user and members of the group `polder` (SO_PEERGROUPS) are admin; -EACCES for
 * others. */
must_check int auth_peer(int fd, struct actor *ret_actor, struct err *err);
/* "Bearer TOKEN" of an Authorization header. -EACCES. */
must_check int auth_token(struct store *store, const char *header, struct actor *ret_actor, struct err *err);
/* The subject of a client certificate that the TLS layer has checked: CN is the name, OU the role. -EACCES. */
must_check int auth_subject(const char *common_name, const char *unit, struct actor *ret_actor, struct err *err);

/* A new token and the document to store. */
must_check int token_make(const char *name, enum role role, const char *actor, char ret_token[static TOKEN_SIZE],
                          json_t **ret_document, struct err *err);
