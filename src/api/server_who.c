/* Who asks: the peer of a unix socket, a token, a client certificate. */
#include "api/server_impl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "api/auth.h"

static void note_origin(struct exchange *exchange)
{
    struct actor *actor = &exchange->request.actor;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *address = info ? info->client_addr : NULL;
    if (address && address->sa_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)address)->sin_addr, actor->origin, sizeof actor->origin);
    else if (address && address->sa_family == AF_INET6)
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr, actor->origin,
                  sizeof actor->origin);
}

static int certificate_actor(const gnutls_datum_t *raw, struct actor *actor, struct err *err)
{
    gnutls_x509_crt_t certificate;
    char name[64] = "", unit[64] = "";
    size_t name_size = sizeof name, unit_size = sizeof unit;
    if (gnutls_x509_crt_init(&certificate) < 0)
        return err_set(err, ENOMEM, "certificate");
    if (gnutls_x509_crt_import(certificate, raw, GNUTLS_X509_FMT_DER) < 0 ||
        gnutls_x509_crt_get_dn_by_oid(certificate, GNUTLS_OID_X520_COMMON_NAME, 0, 0, name, &name_size) < 0)
        name[0] = '\0';
    if (gnutls_x509_crt_get_dn_by_oid(certificate, GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME, 0, 0, unit, &unit_size) < 0)
        unit[0] = '\0';
    gnutls_x509_crt_deinit(certificate);
    return auth_subject(name, unit, actor, err);
}

/* 1: it has shown a certificate and is who it says; 0: it has none. */
static int authenticate_certificate(struct exchange *exchange, struct err *err)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    gnutls_session_t session = info ? info->tls_session : NULL;
    gnutls_typed_vdata_st for_clients = {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_CLIENT};
    unsigned count = 0, status = 0;
    const gnutls_datum_t *certificates = session ? gnutls_certificate_get_peers(session, &count) : NULL;
    if (!certificates || !count || !exchange->server->ca)
        return 0;
    if (gnutls_certificate_verify_peers(session, &for_clients, 1, &status) < 0 || status != 0)
        return err_say(err, EACCES, "the client certificate is not signed by the CA of --tls-ca, not for clients, or not valid now");
    int r = certificate_actor(&certificates[0], &exchange->request.actor, err);
    return r < 0 ? r : 1;
}

int exchange_authenticate(struct exchange *exchange, struct err *err)
{
    const struct peer *peer = exchange->peer;
    if (!peer)
        return err_set(err, ENOMEM, "connection");
    if (!peer->tls) {
        if (peer->refused.code)
            return err_say(err, peer->refused.code, "%s", peer->refused.message);
        exchange->request.actor = peer->actor;
        return 0;
    }
    note_origin(exchange);
    const char *header = MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, "Authorization");
    if (header)
        return auth_token(exchange->server->config.platform->store, header, &exchange->request.actor, err);
    int r = authenticate_certificate(exchange, err);
    return r < 0 ? r : r > 0 ? 0 : err_say(err, EACCES, "say who you are: a client certificate, or 'Authorization: Bearer TOKEN'");
}

int exchange_check_origin(const struct exchange *exchange, struct err *err)
{
    const char *origin = MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, "Origin");
    const char *host = MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, "Host");
    const char *place = origin ? strstr(origin, "://") : NULL;
    if (!origin || (host && place && !strcmp(place + 3, host)))
        return 0;
    return err_say(err, EACCES, "requests from pages of another origin (%.64s) are refused", origin);
}
