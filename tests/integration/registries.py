"""A docker-registry on loopback, images to fill it with, and what may stand between it and its clients.

Everything runs below a folder of the test and ends with its `with` block.
"""
import base64
import crypt
import gzip
import hashlib
import http.client
import http.server
import io
import json
import os
import socket
import subprocess
import tarfile
import threading
import time
import urllib.parse
from pathlib import Path

DEADLINE_S = 20


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


# ---- the registry ----

class Registry:
    """docker-registry with storage of its own. `auth` is what its configuration says under that name."""

    def __init__(self, folder, auth="", tls=None):
        self.folder, self.port = Path(folder), free_port()
        self.name = f"127.0.0.1:{self.port}"
        self.storage = self.folder / "storage"
        self.storage.mkdir(parents=True)
        config = self.folder / "config.yml"
        lines = ["version: 0.1", "log: {level: warn}", f"storage: {{filesystem: {{rootdirectory: {self.storage}}}}}",
                 f"http: {{addr: '{self.name}', secret: test" +
                 (f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}}}" if tls else "}")]
        config.write_text("\n".join(lines) + "\n" + auth)
        self.log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(["docker-registry", "serve", config], stdout=self.log, stderr=self.log)
        self.wait()

    def wait(self):
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, "docker-registry does not listen"
                time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def blob_path(self, digest):
        hex_digits = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / hex_digits[:2] / hex_digits / "data"


def htpasswd_auth(folder, user, password):
    path = Path(folder) / "htpasswd"
    path.write_text(f"{user}:{crypt.crypt(password, crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16))}\n")
    return f"auth: {{htpasswd: {{realm: test, path: {path}}}}}\n"


# ---- images ----

def tar_layer(files):
    """An uncompressed tar of {name: bytes}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Layout:
    """An OCI layout in a folder, built blob by blob, for skopeo to take images from."""

    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder / "blobs/sha256").mkdir(parents=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.entries = []

    def blob(self, data, media_type):
        digest = sha256(data)
        (self.folder / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(self, layers, architecture="amd64", config=None):
        """Descriptor of an image of these uncompressed layers, stored as gzip."""
        text = json.dumps({"architecture": architecture, "os": "linux", "created": "2024-01-02T03:04:05Z",
                           "config": config or {"Cmd": ["sh"], "Env": ["PATH=/bin"], "Labels": {"a": "b"}},
                           "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]}}).encode()
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": self.blob(text, "application/vnd.oci.image.config.v1+json"),
                    "layers": [self.blob(gzip.compress(layer, 1, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
                               for layer in layers]}
        return self.blob(json.dumps(manifest).encode(), manifest["mediaType"])

    def index(self, images):
        """Descriptor of an index of {architecture: descriptor}."""
        text = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [{**d, "platform": {"os": "linux", "architecture": a}} for a, d in images.items()]}
        return self.blob(json.dumps(text).encode(), text["mediaType"])

    def tag(self, name, descriptor):
        self.entries.append({**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}})
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.entries}))


def skopeo(*args, input=None):
    done = subprocess.run(["skopeo", "--insecure-policy", *map(str, args)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- between registry and client ----

class CuttingProxy:
    """TCP to `port`, whose first `cuts` connections that carry that much end after `after` bytes to the client."""

    def __init__(self, port, cuts, after):
        self.port, self.cuts, self.after = port, cuts, after
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.made = 0  # cuts
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self.serve, args=(client,), daemon=True)
            thread.start()
            self.threads.append(thread)

    def serve(self, client):
        with client, socket.create_connection(("127.0.0.1", self.port)) as server:
            back = threading.Thread(target=self.forward, args=(client, server, None), daemon=True)
            back.start()
            self.forward(server, client, self.after)
            for end in (client, server):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            back.join()

    def forward(self, source, sink, limit):
        sent = 0
        try:
            while data := source.recv(16384):
                if limit is not None and sent + len(data) > limit and self.take_cut():
                    sink.sendall(data[:limit - sent])
                    source.shutdown(socket.SHUT_RDWR)
                    sink.shutdown(socket.SHUT_RDWR)
                    return
                sink.sendall(data)
                sent += len(data)
        except OSError:  # a client that was killed resets its connection
            pass
        try:
            sink.shutdown(socket.SHUT_WR)  # else an idle server would keep the other direction waiting
        except OSError:
            pass

    def take_cut(self):
        with self.lock:
            if self.made >= self.cuts:
                return False
            self.made += 1
            return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join()


class Server(http.server.ThreadingHTTPServer):
    """An HTTP server whose answers are a function's: answer(request) with request.method, .path, .headers, .body; it returns
    (status, headers, body), or None to send the request on to `behind`."""
    daemon_threads = True

    def __init__(self, answer=lambda request: None, behind=None):
        self.answer, self.behind, self.requests = answer, behind, []
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self.thread.start()

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        self.method, self.body = self.command, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.method, self.path, dict(self.headers)))
        status, headers, body = self.server.answer(self) or self.pass_on()
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.method != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any

    def pass_on(self):
        behind = http.client.HTTPConnection(self.server.behind, timeout=DEADLINE_S)
        behind.request(self.method, self.path, self.body, {**self.headers})
        answer = behind.getresponse()
        body = answer.read()
        headers = {n: v for n, v in answer.getheaders() if n not in ("Transfer-Encoding", "Connection", "Date")}
        behind.close()
        return answer.status, headers, body

    def log_message(self, *_):
        pass


# ---- token authentication ----

class TokenServer(Server):
    """Gives docker-registry's bearer tokens, signed with a key of its own, to `user` with `password`."""

    def __init__(self, folder, user, password):
        self.folder = Path(folder)
        self.key, self.certificate = self.folder / "token.key", self.folder / "token.crt"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", self.key, "-out", self.certificate,
                        "-subj", "/CN=token", "-days", "2"], check=True, capture_output=True)
        self.expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        super().__init__(self.give)

    def auth(self):
        return (f"auth: {{token: {{realm: 'http://{self.name}/token', service: test, issuer: tests, "
                f"rootcertbundle: {self.certificate}}}}}\n")

    def give(self, request):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.path).query)
        if request.headers.get("Authorization") != self.expected or query.get("service") != ["test"]:
            return 401, {}, b'{"errors": [{"message": "who are you?"}]}'
        access = []
        for scope in query.get("scope", []):
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        return 200, {"Content-Type": "application/json"}, json.dumps({"token": self.token(access)}).encode()

    def token(self, access):
        der = subprocess.run(["openssl", "x509", "-in", self.certificate, "-outform", "DER"], check=True, capture_output=True).stdout
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {"iss": "tests", "sub": "user", "aud": "test", "exp": now + 300, "nbf": now - 10, "iat": now, "jti": os.urandom(8).hex(),
                  "access": access}
        text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (head, claims))
        signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", self.key], input=text.encode(), check=True,
                                   capture_output=True).stdout
        return text + "." + base64.urlsafe_b64encode(signature).decode().rstrip("=")
