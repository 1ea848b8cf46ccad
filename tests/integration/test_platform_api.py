"""polderd's API: routes, who may what, hostile clients, the OpenAPI document's promises, events, restarts."""
import json
import os
import random
import re
import socket
import ssl
import subprocess
import threading
import time
import http.client
from concurrent.futures import ThreadPoolExecutor

import pytest

import polderd
import websocket_client

pytestmark = pytest.mark.needs_no_vmm
ROLES = ["viewer", "operator", "admin"]


@pytest.fixture(scope="module")
def daemon():
    with polderd.Polderd() as d:
        yield d


@pytest.fixture(scope="module")
def document(daemon):
    return daemon.client.get("/v1/openapi.json")


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def filled(path):
    return path.replace("{id}", "0123456789abcdef").replace("{name}", "nothing").replace("{snapshot}", "none")


# ---- what is there ----

def test_system_says_what_runs(daemon):
    system = daemon.client.get("/v1/system")
    assert system["state_dir"] == str(daemon.state) and system["uid"] == os.geteuid()
    assert system["engine"]["name"] in ("jit", "kvm") and system["engine"]["reason"]
    assert system["admission"]["memory"]["capacity_bytes"] > 0


def test_doctor_names_a_cure_for_what_is_not_well(daemon):
    checks = {c["name"]: c for c in daemon.client.get("/v1/system/doctor")}
    assert {"kvm", "cgroups", "guest-files", "disk-space", "mkfs.erofs"} <= checks.keys()
    assert all(c["detail"] and (c["ok"] or c["cure"]) for c in checks.values())
    assert checks["kvm"]["ok"] == os.access("/dev/kvm", os.W_OK)


def test_every_answer_to_a_question_is_of_its_shape(daemon, document):
    for method, path, operation in operations(document):
        if method != "GET" or "{" in path or operation["responses"].get("101") or path == "/v1/events":
            continue
        if any(p["required"] for p in operation["parameters"]):
            continue
        status, headers, body = daemon.client.raw(method, path)
        assert status == 200, (path, body)
        media, shape = next(iter(operation["responses"]["200"]["content"].items()))
        assert headers["Content-Type"].startswith(media)
        if media == "application/json":
            assert isinstance(json.loads(body), list if shape["schema"].get("type") == "array" else dict), path


@pytest.mark.parametrize("method, path, body, status, words", [
    ("GET", "/v1/nope", None, 404, "there is no GET /v1/nope"),
    ("PUT", "/v1/tokens", None, 405, "takes GET, POST"),
    ("POST", "/v1/tokens", None, 400, "a body is missing"),
    ("POST", "/v1/tokens", b"{", 400, "not JSON"),
    ("POST", "/v1/tokens", b'{"name":"x","name":"y","role":"viewer"}', 400, "duplicate"),
    ("POST", "/v1/tokens", b'{"name":"X","role":"viewer"}', 400, "name: must be"),
    ("POST", "/v1/tokens", b'{"name":"x","role":"king"}', 400, "'viewer', 'operator' or 'admin'"),
    ("POST", "/v1/tokens", b'{"name":"x","role":"viewer","more":1}', 400, "unknown field 'more'"),
    ("POST", "/v1/tokens", b'{"name":"x"}', 400, "field 'role' is missing"),
    ("POST", "/v1/instances", b'{"image":"a","ports":[{"host":1,"guest":2},{"host":99999,"guest":1}]}', 400, "ports: [1]: host"),
    ("POST", "/v1/instances", b'{"image":"a","labels":{"k":1}}', 400, "labels: 'k': must be a string"),
    ("GET", "/v1/audit?limit=0", None, 400, "limit: must be 1 to 1000"),
    ("GET", "/v1/audit?limit=1&limit=2", None, 400, "twice"),
    ("GET", "/v1/audit?lemit=1", None, 400, "unknown parameter 'lemit'"),
    ("GET", "/v1/volumes/UP", None, 400, "name in the path"),
    ("GET", "/v1/volumes/nothing", None, 404, "no volume 'nothing'"),
    ("GET", "/v1/instances/nothing/attach", None, 400, "this is a WebSocket"),
    ("POST", "/v1/tokens", b"[" * 300000, 400, "not JSON"),
    ("POST", "/v1/tokens", b" " * (1 << 20) + b"{}", 413, "larger than"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_wrong_is_named(daemon, method, path, body, status, words):
    got, headers, answer = daemon.client.raw(method, path, body)
    error = json.loads(answer)["error"]
    assert (got, words in error["message"]) == (status, True), error
    assert status != 405 or headers["Allow"] == "GET, POST"


# ---- who may ----

def test_another_user_is_refused(daemon):
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    os.chmod(daemon.socket, 0o666)  # what keeps others out must not be the mode alone
    try:
        out = subprocess.run(["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", "curl", "-s", "--unix-socket",
                              daemon.socket, "http://x/v1/system"], capture_output=True, text=True, timeout=20, check=False)
    finally:
        os.chmod(daemon.socket, 0o660)
    assert json.loads(out.stdout)["error"]["code"] == "denied" and "group polder" in out.stdout


def test_a_large_group_has_the_socket(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to have groups of its own")
    groups = tmp_path / "group"
    groups.write_text("polder:x:7777:" + ",".join(f"somebody-{i}" for i in range(1000)) + "\n")
    own = ("unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/group && exec "$@"', groups)
    with polderd.Polderd(prefix=own) as d:
        assert os.stat(d.socket).st_gid == 7777
        out = subprocess.run(["setpriv", "--reuid=4242", "--regid=7777", "--clear-groups", "curl", "-s", "--unix-socket",
                              d.socket, "http://x/v1/volumes"], capture_output=True, text=True, timeout=20, check=False)
    assert json.loads(out.stdout) == []


def test_the_socket_is_not_for_everyone(daemon):
    assert os.stat(daemon.socket).st_mode & 0o777 == 0o660


def test_a_page_of_another_origin_is_refused(daemon):
    status, _, body = daemon.client.raw("GET", "/v1/system", headers={"Origin": "http://evil.example"})
    assert status == 403 and b"another origin" in body


def test_changes_are_audited_with_who_and_where(daemon):
    daemon.client.post("/v1/tokens", {"name": "audited", "role": "viewer"})
    daemon.client.delete("/v1/tokens/audited")
    records = daemon.client.get("/v1/audit", limit=2)
    assert [r["action"] for r in records] == ["token.remove", "token.create"]
    assert all(r["actor"] == f"uid:{os.geteuid()}" and r["origin"] == "unix" and r["target"] == "tokens/audited"
               for r in records)
    assert daemon.client.get("/v1/audit", limit=1, before=records[0]["id"])[0]["id"] == records[1]["id"]


def test_a_cancellation_is_audited(daemon):
    operation = daemon.client.post("/v1/images/pull", {"ref": "localhost:1/none"})
    daemon.client.delete(f"/v1/operations/{operation['id']}")
    record = daemon.client.get("/v1/audit", limit=1)[0]
    assert (record["action"], record["target"]) == ("operation.cancel", f"operations/{operation['id']}")


# ---- TLS ----

def openssl(*argv, cwd):
    subprocess.run(["openssl", *argv], cwd=cwd, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    for ca in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{ca}.key",
                "-out", f"{ca}.pem", "-days", "2", "-subj", f"/CN={ca}", cwd=folder)
    (folder / "web.ext").write_text("extendedKeyUsage=serverAuth\n")
    (folder / "any.ext").write_text("basicConstraints=CA:FALSE\n")
    names = {"web": ("ca", "/CN=web/OU=admin"), "server": ("ca", "/CN=localhost"), "forged": ("other", "/CN=eve/OU=admin"), "king": ("ca", "/CN=louis/OU=king"),
             **{r: ("ca", f"/CN=test/OU={r}") for r in ROLES}}
    for name, (ca, subject) in names.items():
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key", "-out",
                f"{name}.csr", "-subj", subject, cwd=folder)
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-extfile",
                "web.ext" if name == "web" else "any.ext", "-days", "2", "-out", f"{name}.pem", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def tls(certificates):
    c = certificates
    with polderd.Polderd("--listen", "127.0.0.1:0", "--tls-cert", c / "server.pem", "--tls-key", c / "server.key", "--tls-ca",
                         c / "ca.pem", netns=False) as d:
        d.port = int(re.search(r"TLS on port (\d+)", d.log())[1])
        yield d


def tls_client(daemon, certificates, certificate=None):
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    context.check_hostname = False
    if certificate:
        context.load_cert_chain(certificates / f"{certificate}.pem", certificates / f"{certificate}.key")
    return polderd.Client(lambda t: http.client.HTTPSConnection("127.0.0.1", daemon.port, timeout=t, context=context))


def test_who_is_switched_off_is_noticed(tls, certificates):
    client = tls_client(tls, certificates, "viewer")
    stream = client.events(follow=1)
    assert next(stream) is None
    sockets = subprocess.run(["ss", "-tnoH", "state", "established", f"sport = :{tls.port}"], capture_output=True, text=True,
                             timeout=20, check=True).stdout
    stream.close()
    assert "timer:(keepalive" in sockets


def test_nobody_in_particular_is_refused(tls, certificates):
    status, headers, body = tls_client(tls, certificates).raw("GET", "/v1/system")
    assert status == 401 and headers["WWW-Authenticate"] == "Bearer" and b"say who you are" in body


@pytest.mark.parametrize("header", ["Bearer polder_" + "0" * 64, "Bearer x", "Basic eDp4", "Bearer polder_" + "0" * 6000])
def test_tokens_that_are_none(tls, certificates, header):
    assert tls_client(tls, certificates).raw("GET", "/v1/system", headers={"Authorization": header})[0] == 401


@pytest.mark.parametrize("certificate, words", [("forged", "not signed by"), ("web", "not for clients"), ("king", "OU must be")])
def test_certificates_that_do_not_do(tls, certificates, certificate, words):
    try:
        status, _, body = tls_client(tls, certificates, certificate).raw("GET", "/v1/system")
    except (ssl.SSLError, ConnectionError):
        return  # refused in the handshake
    assert status == 401 and words in body.decode()


@pytest.mark.parametrize("by", ["token", "certificate"])
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_what_the_table_says(tls, certificates, role, by):
    """Every route: refused with 403 for lesser roles, and for no other reason than that."""
    headers = {}
    if by == "token":
        tls.client.request("DELETE", f"/v1/tokens/{role}") if role in [t["name"] for t in tls.client.get("/v1/tokens")] else None
        token = tls.client.post("/v1/tokens", {"name": role, "role": role})["token"]
        assert token not in json.dumps(tls.client.get("/v1/tokens"))
        headers = {"Authorization": f"Bearer {token}"}
    client = tls_client(tls, certificates, role if by == "certificate" else None)
    for method, path, operation in operations(tls.client.get("/v1/openapi.json")):
        status, _, body = client.raw(method, filled(path) + "?surely_unknown=1", headers=headers)
        allowed = ROLES.index(role) >= ROLES.index(operation["x-role"])
        assert (status == 403) == (not allowed), (method, path, status, body)


def test_a_removed_token_is_refused_at_once(tls, certificates):
    token = tls.client.post("/v1/tokens", {"name": "gone", "role": "admin"})["token"]
    headers = {"Authorization": f"Bearer {token}"}
    client = tls_client(tls, certificates)
    assert client.raw("GET", "/v1/system", headers=headers)[0] == 200
    tls.client.delete("/v1/tokens/gone")
    assert client.raw("GET", "/v1/system", headers=headers)[0] == 401


# ---- hostile and slow clients ----

def connect(daemon):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    s.connect(str(daemon.socket))
    return s


@pytest.mark.parametrize("data", [b"\0" * 4096, b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"/" * 60000 + b" HTTP/1.1\r\n\r\n",
                                  b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20000 + b"\r\n", b"GET /v1/system\r\n\r\n",
                                  b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
                                  b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"])
def test_garbage_is_answered_or_ended(daemon, data):
    with connect(daemon) as s:
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            answer = s.recv(65536)
        except ConnectionError:
            answer = b""
    assert not answer or re.match(rb"HTTP/1.[01] [45]\d\d ", answer), answer[:100]
    assert daemon.client.get("/v1/system")


def test_idle_connections_keep_nobody_out(daemon):
    idle = [connect(daemon) for _ in range(200)]
    for s in idle[:100]:
        s.sendall(b"GET /v1/sys")
    started = time.monotonic()
    assert daemon.client.get("/v1/system")
    assert time.monotonic() - started < 5 * polderd.SCALE
    for s in idle:
        s.close()


# ---- requests generated from the reference ----

def texts(schema, rng):
    pattern, most = schema.get("pattern", ""), schema.get("maxLength", 4096)
    good = {"^[a-z0-9]([a-z0-9-]": "no-such-thing", "^[0-9a-f]{16}$": "0123456789abcdef", "^[^=]+=": "K=V", "^/": "/x",
            "^([1-9]|": "TERM", "^(([0-9a-fA-F]": "", "^[A-Za-z0-9][A-Za-z0-9._:/@+-]": "localhost:1/none"}
    value = next((v for p, v in good.items() if pattern.startswith(p)), "1")
    return rng.choice([value] * 6 + ["", "x" * (most + 1), "\u00e9\u4e2d", "../../etc/passwd", "%00", "A" * min(most, 300)])


def value(document, schema, rng, depth=0):
    if rng.random() < 0.06 or depth > 4:
        return rng.choice([None, True, -1, 2 ** 63 - 1, 1e300, "", [], {}, [[]], {"a": {}}, "\u0001"])
    if "$ref" in schema:
        return value(document, document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], rng, depth + 1)
    if "allOf" in schema:
        return value(document, schema["allOf"][0], rng, depth)
    kind = schema.get("type")
    if kind == "boolean":
        return rng.choice([True, False])
    if kind == "integer":
        low, high = schema["minimum"], schema["maximum"]
        return rng.choice([low, high, low - 1, (low + high) // 2, min(low + 1, high)])
    if kind == "string":
        return rng.choice(schema["enum"]) if "enum" in schema else texts(schema, rng)
    if kind == "array":
        return [value(document, schema["items"], rng, depth + 1) for _ in range(rng.choice([0, 1, 2]))]
    result = {}
    for name, field in schema.get("properties", {}).items():
        if rng.random() < (0.95 if name in schema.get("required", []) else 0.3):
            result[name] = value(document, field, rng, depth + 1)
    if rng.random() < 0.05:
        result["unknown"] = 1
    return result


def generated(document, rng, choices):
    method, path, operation = rng.choice(choices)
    query = {}
    for p in operation["parameters"]:
        if p["in"] == "query" and (p["required"] or rng.random() < 0.3) and rng.random() < 0.95 and p["name"] != "wait":
            query[p["name"]] = value(document, p["schema"], rng)
    path = filled(path) + ("?" + polderd.urllib.parse.urlencode(query) if query else "")
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    body = json.dumps(value(document, schema, rng)).encode() if schema else None
    if body and rng.random() < 0.1:
        body = body[:rng.randrange(len(body))] + bytes(rng.randrange(256) for _ in range(rng.randrange(3)))
    return method, path, body


def test_ten_thousand_requests_from_the_reference(daemon, document):
    """No status but those documented, no hang. 503 says that a part of the host is missing: a registry, a guest."""
    left_out = ("/v1/events", "/v1/images/build", "/v1/system/doctor", "/v1/system/prune", "/v1/images/prune")
    choices = [c for c in operations(document) if c[1] not in left_out]
    documented = {int(s) for _, _, o in choices for s in o["responses"] if s != "default"} | {400, 404, 405, 409, 413}
    failures, statuses, lock = [], {}, threading.Lock()

    def worker(seed):
        rng = random.Random(seed)
        connection = daemon.client.connect(60 * polderd.SCALE)
        for _ in range(1250):
            method, path, body = generated(document, rng, choices)
            try:
                connection.request(method, path, body=body)
                answer = connection.getresponse()
                text = answer.read()
            except (http.client.HTTPException, OSError) as error:
                with lock:
                    failures.append((method, path, body, repr(error)))
                connection.close()
                continue
            with lock:
                statuses[answer.status] = statuses.get(answer.status, 0) + 1
                if answer.status not in documented:
                    failures.append((method, path, body, answer.status, text[:200]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(worker, range(8)))
    assert not failures, "\n".join(str(f) for f in failures[:5])
    assert sum(statuses.values()) == 10000 and statuses.get(400, 0) > 1000, statuses
    assert daemon.process.poll() is None and daemon.client.get("/v1/system")


# ---- events ----

def test_events_come_whole_and_in_order(daemon):
    got = []
    with ThreadPoolExecutor(1) as pool:
        stream = daemon.client.events(follow=1, kind="token")
        assert next(stream) is None  # it listens
        reading = pool.submit(lambda: [got.append(next(stream)) for _ in range(40)])
        for i in range(20):
            daemon.client.post("/v1/tokens", {"name": f"event-{i}", "role": "viewer"})
            daemon.client.delete(f"/v1/tokens/event-{i}")
        reading.result(30 * polderd.SCALE)
        stream.close()
    assert [(e["name"], e["action"]) for e in got] == [
        (f"event-{i // 2}", ("created", "removed")[i % 2]) for i in range(40)]
    revisions = [e["revision"] for e in got]
    assert revisions == sorted(set(revisions))
    assert "hash" not in json.dumps(got)
    again = [e for e in daemon.client.events(since=revisions[9], kind="token") if e]
    assert [e["revision"] for e in again] == revisions[10:]


def test_events_of_tokens_are_for_admins(tls, certificates):
    viewer = tls_client(tls, certificates, "viewer")
    tls.client.post("/v1/tokens", {"name": "secret-name", "role": "viewer"})
    with ThreadPoolExecutor(1) as pool:
        stream = viewer.events(follow=1)
        assert next(stream) is None
        first = pool.submit(lambda: next(stream))
        tls.client.post("/v1/tokens", {"name": "unseen", "role": "viewer"})
        tls.client.post("/v1/volumes", {"name": "seen", "size_bytes": 1 << 20})
        assert first.result(20 * polderd.SCALE)["name"] == "seen"
        stream.close()
    assert viewer.raw("GET", "/v1/events?kind=token")[0] == 403
    tls.client.delete("/v1/volumes/seen")


def test_events_of_operations(daemon):
    stream = daemon.client.events(follow=1, kind="operation")
    assert next(stream) is None
    daemon.client.do("POST", "/v1/images/prune")
    actions = [next(stream)["action"] for _ in range(3)]
    stream.close()
    assert actions == ["queued", "running", "succeeded"]


# ---- volumes through the API, bodies of any length ----

def test_a_volume_goes_out_and_comes_in(daemon):
    c = daemon.client
    c.post("/v1/volumes", {"name": "api-a", "size_bytes": 16 << 20})
    status, _, raw = c.raw("GET", "/v1/volumes/api-a/export?format=raw")
    assert status == 200 and len(raw) == 16 << 20
    status, _, body = c.raw("PUT", "/v1/volumes/api-b/import?format=raw", raw)
    assert status == 201, body
    assert c.raw("GET", "/v1/volumes/api-b/export?format=raw")[2] == raw
    for name in ("api-a", "api-b"):
        c.delete(f"/v1/volumes/{name}")


def test_an_upload_that_breaks_off_leaves_nothing(daemon):
    with connect(daemon) as s:
        s.sendall(b"PUT /v1/volumes/cut/import?format=raw HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 100000)
    deadline = time.monotonic() + 20 * polderd.SCALE
    while "broken" not in daemon.log() and time.monotonic() < deadline and daemon.children()[1:]:
        time.sleep(0.1)
    time.sleep(0.5)
    with pytest.raises(polderd.ApiError) as error:
        daemon.client.get("/v1/volumes/cut")
    assert error.value.status == 404


# ---- life ----

def test_one_polderd_a_state_folder(daemon):
    out = subprocess.run([polderd.BIN / "polderd", "--state-dir", daemon.state, "--socket", daemon.home / "second"],
                         capture_output=True, text=True, timeout=20, check=False)
    assert out.returncode == 1 and "another polderd uses" in out.stderr and "--state-dir" in out.stderr


def test_one_polderd_a_run_folder(daemon, tmp_path):
    """The second would else take the first one's sockets and networks for its own."""
    out = subprocess.run([polderd.BIN / "polderd", "--state-dir", tmp_path / "s", "--run-dir", daemon.run, "--socket",
                          daemon.home / "second"], capture_output=True, text=True, timeout=20, check=False)
    assert out.returncode == 1 and "another polderd uses" in out.stderr and "--run-dir" in out.stderr


@pytest.mark.parametrize("args, status, words", [
    (["--nonsense"], 2, "unknown option"), (["--log-level", "loud"], 2, "give error, warn"),
    (["--listen", "127.0.0.1:0"], 1, "needs --tls-cert"), (["--listen", "nowhere"], 1, "ADDRESS:PORT")])
def test_options_that_are_wrong(tmp_path, args, status, words):
    argv = [polderd.BIN / "polderd", "--state-dir", tmp_path / "s", "--socket", tmp_path / "sock",
            *(args if args[0] != "--listen" or len(args) > 2 or "needs" in words else
              [*args, "--tls-cert", "/dev/null", "--tls-key", "/dev/null"])]
    out = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert out.returncode == status and words in out.stderr, out


@pytest.mark.parametrize("number", [15, 9])
def test_a_restart_keeps_what_was_made(number):
    with polderd.Polderd() as d:
        token = d.client.post("/v1/tokens", {"name": "kept", "role": "viewer"})
        d.client.post("/v1/volumes", {"name": "kept", "size_bytes": 8 << 20})
        stream = d.client.events(follow=1)
        assert next(stream) is None
        started = time.monotonic()
        assert d.stop(number) == (0 if number == 15 else -9)
        assert time.monotonic() - started < 10 * polderd.SCALE
        assert list(stream) == []
        d.start()
        assert [t["name"] for t in d.client.get("/v1/tokens")] == ["kept"]
        assert d.client.get("/v1/volumes/kept")["created_at"] and token["token"]


def test_metrics_count_requests(daemon):
    _, _, before = daemon.client.raw("GET", "/metrics")
    daemon.client.get("/v1/tokens")
    _, _, after = daemon.client.raw("GET", "/metrics")

    def count(text):
        found = re.search(rb'requests_total\{method="GET",route="/v1/tokens",status="200"\} (\d+)', text)
        return int(found[1]) if found else 0
    assert count(after) > count(before)
    assert re.search(rb"^polder_resident_memory_bytes [1-9]\d+$", after, re.M)
