/* TLS by GnuTLS between two buffers of a connection: what came encrypted, and what is to be sent. */
#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/library.h"
#include "nbd/server_impl.h"

#define GNUTLS_FUNCTIONS(X) \
    X(gnutls_alert_send_appropriate) X(gnutls_certificate_allocate_credentials) X(gnutls_certificate_free_credentials) \
    X(gnutls_certificate_server_set_request) X(gnutls_certificate_set_x509_key_file) \
    X(gnutls_certificate_set_x509_trust_file) X(gnutls_credentials_set) X(gnutls_deinit) X(gnutls_error_is_fatal) \
    X(gnutls_handshake) X(gnutls_init) X(gnutls_priority_set_direct) X(gnutls_psk_allocate_server_credentials) \
    X(gnutls_psk_free_server_credentials) X(gnutls_psk_set_server_credentials_file) X(gnutls_record_recv) \
    X(gnutls_record_send) X(gnutls_session_set_verify_cert) X(gnutls_strerror) X(gnutls_transport_set_errno) \
    X(gnutls_transport_set_ptr) X(gnutls_transport_set_pull_function) X(gnutls_transport_set_pull_timeout_function) \
    X(gnutls_transport_set_push_function)

static struct {
    GNUTLS_FUNCTIONS(LIBRARY_MEMBER)
} tls_lib;

static struct library gnutls = {
    .file = "libgnutls.so.30",
    .package = "libgnutls30",
    .needed_for = "TLS",
    .functions = (const char *const[]){GNUTLS_FUNCTIONS(LIBRARY_ENTRY) NULL},
    .table = &tls_lib,
};

#define IN_BYTES (64u << 10) /* a record has at most 16 KiB and some */
#define OUT_BYTES (512u << 10)
#define RECORD_ROOM 20000u /* for one more record */
#define PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
#define PRIORITY_PSK PRIORITY ":+ECDHE-PSK:+DHE-PSK"

struct nbd_tls {
    gnutls_psk_server_credentials_t psk;
    gnutls_certificate_credentials_t certificates;
};

struct tls_session {
    gnutls_session_t session;
    size_t in_from, in_to, out_from, out_to;
    uint8_t in[IN_BYTES], out[OUT_BYTES];
};

/* ---- credentials ---- */

static int load_psk(struct nbd_tls *tls, const char *path, struct err *err)
{
    if (access(path, R_OK) < 0)
        return err_set(err, errno, "keys '%s'", path);
    int r = tls_lib.gnutls_psk_allocate_server_credentials(&tls->psk);
    if (r == 0)
        r = tls_lib.gnutls_psk_set_server_credentials_file(tls->psk, path);
    return r < 0 ? err_say(err, EINVAL, "keys '%s': %s", path, tls_lib.gnutls_strerror(r)) : 0;
}

static int load_certificates(struct nbd_tls *tls, const char *folder, struct err *err)
{
    static const char *const names[] = {"ca-cert.pem", "server-cert.pem", "server-key.pem"};
    char paths[3][4096];
    for (unsigned i = 0; i < 3; i++) {
        if ((size_t)snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]) >= sizeof paths[i])
            return err_say(err, ENAMETOOLONG, "the folder's name is too long");
        if (access(paths[i], R_OK) < 0)
            return err_set(err, errno, "certificates: '%s'", paths[i]);
    }
    int r = tls_lib.gnutls_certificate_allocate_credentials(&tls->certificates);
    if (r >= 0)
        r = tls_lib.gnutls_certificate_set_x509_trust_file(tls->certificates, paths[0], GNUTLS_X509_FMT_PEM);
    if (r >= 0)
        r = tls_lib.gnutls_certificate_set_x509_key_file(tls->certificates, paths[1], paths[2], GNUTLS_X509_FMT_PEM);
    return r < 0 ? err_say(err, EINVAL, "certificates in '%s': %s", folder, tls_lib.gnutls_strerror(r)) : 0;
}

int nbd_tls_create(const char *psk_file, const char *certificates, struct nbd_tls **ret_tls, struct err *err)
{
    int r = library_load(&gnutls, err);
    if (r < 0)
        return r;
    struct nbd_tls *tls = calloc(1, sizeof *tls);
    if (!tls)
        return err_set(err, ENOMEM, "TLS");
    r = psk_file ? load_psk(tls, psk_file, err) : load_certificates(tls, certificates, err);
    if (r < 0)
        nbd_tls_free(tls);
    else
        *ret_tls = tls;
    return r;
}

void nbd_tls_free(struct nbd_tls *tls)
{
    if (!tls)
        return;
    if (tls->psk)
        tls_lib.gnutls_psk_free_server_credentials(tls->psk);
    if (tls->certificates)
        tls_lib.gnutls_certificate_free_credentials(tls->certificates);
    free(tls);
}

/* ---- a session ---- */

static ssize_t pull(gnutls_transport_ptr_t arg, void *data, size_t len)
{
    struct tls_session *s = arg;
    size_t there = s->in_to - s->in_from, n = there < len ? there : len;
    if (!n) {
        tls_lib.gnutls_transport_set_errno(s->session, EAGAIN);
        return -1;
    }
    memcpy(data, s->in + s->in_from, n);
    s->in_from += n;
    return (ssize_t)n;
}

static ssize_t push(gnutls_transport_ptr_t arg, const void *data, size_t len)
{
    struct tls_session *s = arg;
    size_t room = OUT_BYTES - s->out_to, n = room < len ? room : len;
    if (!n) {
        tls_lib.gnutls_transport_set_errno(s->session, EAGAIN);
        return -1;
    }
    memcpy(s->out + s->out_to, data, n);
    s->out_to += n;
    return (ssize_t)n;
}

/* GnuTLS asks in some handshakes; the connection has its own time limit. */
static int pull_timeout(gnutls_transport_ptr_t arg, unsigned ms)
{
    const struct tls_session *s = arg;
    (void)ms;
    return s->in_from < s->in_to;
}

static int set_up(struct tls_session *s, const struct nbd_tls *tls)
{
    int r = tls_lib.gnutls_priority_set_direct(s->session, tls->psk ? PRIORITY_PSK : PRIORITY, NULL);
    if (r == 0 && tls->psk)
        r = tls_lib.gnutls_credentials_set(s->session, GNUTLS_CRD_PSK, tls->psk);
    if (r == 0 && tls->certificates)
        r = tls_lib.gnutls_credentials_set(s->session, GNUTLS_CRD_CERTIFICATE, tls->certificates);
    if (r < 0)
        return r;
    if (tls->certificates) {
        tls_lib.gnutls_certificate_server_set_request(s->session, GNUTLS_CERT_REQUIRE);
        tls_lib.gnutls_session_set_verify_cert(s->session, NULL, 0);
    }
    tls_lib.gnutls_transport_set_ptr(s->session, s);
    tls_lib.gnutls_transport_set_pull_function(s->session, pull);
    tls_lib.gnutls_transport_set_push_function(s->session, push);
    tls_lib.gnutls_transport_set_pull_timeout_function(s->session, pull_timeout);
    return 0;
}

struct tls_session *tls_session_create(struct nbd_tls *tls)
{
    struct tls_session *s = malloc(sizeof *s);
    if (!s)
        return NULL;
    s->in_from = s->in_to = s->out_from = s->out_to = 0;
    if (tls_lib.gnutls_init(&s->session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) < 0) {
        free(s);
        return NULL;
    }
    if (set_up(s, tls) < 0) {
        tls_session_free(s);
        return NULL;
    }
    return s;
}

void tls_session_free(struct tls_session *session)
{
    if (!session)
        return;
    tls_lib.gnutls_deinit(session->session);
    free(session);
}

int tls_handshake(struct tls_session *session)
{
    int r;
    do
        r = tls_lib.gnutls_handshake(session->session);
    while (r < 0 && r != GNUTLS_E_AGAIN && !tls_lib.gnutls_error_is_fatal(r));
    if (r == 0 || r == GNUTLS_E_AGAIN)
        return r == 0 ? 0 : -EAGAIN;
    tls_lib.gnutls_alert_send_appropriate(session->session, r);
    return -EPROTO;
}

/* ---- bytes ---- */

uint8_t *tls_input(struct tls_session *session, size_t *ret_room)
{
    if (session->in_from) {
        memmove(session->in, session->in + session->in_from, session->in_to - session->in_from);
        session->in_to -= session->in_from;
        session->in_from = 0;
    }
    *ret_room = IN_BYTES - session->in_to;
    return session->in + session->in_to;
}

void tls_received(struct tls_session *session, size_t len)
{
    session->in_to += len;
}

ssize_t tls_read(struct tls_session *session, void *data, size_t len)
{
    ssize_t r = tls_lib.gnutls_record_recv(session->session, data, len);
    if (r == GNUTLS_E_AGAIN || r == GNUTLS_E_INTERRUPTED)
        return -EAGAIN;
    return r < 0 ? -EPROTO : r;
}

ssize_t tls_write(struct tls_session *session, const struct iovec *iov, unsigned count)
{
    ssize_t done = 0;
    for (unsigned i = 0; i < count; i++) {
        for (size_t at = 0; at < iov[i].iov_len;) {
            if (OUT_BYTES - session->out_to < RECORD_ROOM)
                return done;
            ssize_t n = tls_lib.gnutls_record_send(session->session, (uint8_t *)iov[i].iov_base + at, iov[i].iov_len - at);
            if (n <= 0)
                return done;
            at += (size_t)n;
            done += n;
        }
    }
    return done;
}

const uint8_t *tls_output(const struct tls_session *session, size_t *ret_len)
{
    *ret_len = session->out_to - session->out_from;
    return session->out + session->out_from;
}

void tls_sent(struct tls_session *session, size_t len)
{
    session->out_from += len;
    if (session->out_from == session->out_to)
        session->out_from = session->out_to = 0;
}
