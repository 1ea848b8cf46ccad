"""Start a polderd of one's own, speak to it, and end it with all that it started.

A Polderd has its own state and run folder and socket below a short temporary folder, and by default a network namespace of
its own, so that bridges, rules and forwards are nobody else's. Leaving the `with` block ends polderd and every process
that it or the daemon before it left running in that state folder (polder-vmm, dnsmasq, passt), each by its pid.
"""
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("POLDER_BIN", TOP / "build/bin"))
SCALE = float(os.environ.get("POLDER_TIMEOUT_SCALE", "1"))
PROGRAMS = ("polder-vmm", "polder-img", "polder-unpack", "dnsmasq", "passt", "passt.avx2", "polderd")


class ApiError(Exception):
    def __init__(self, status, document):
        error = document.get("error", {}) if isinstance(document, dict) else {}
        super().__init__(f"{status}: {error.get('message', document)}")
        self.status, self.code, self.message = status, error.get("code"), error.get("message", "")


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("polderd", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Client:
    """Speaks to a polderd; a connection of its own for each request, unless `keep`."""

    def __init__(self, connect):
        self.connect = connect  # timeout -> http.client.HTTPConnection

    def raw(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, bytes)"""
        connection = self.connect(timeout * SCALE)
        try:
            try:
                connection.request(method, path, body=body, headers=headers or {})
            except BrokenPipeError:
                pass  # refused before all of the body was sent: the answer says why
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def request(self, method, path, document=None, timeout=60, **query):
        if query:
            path += "?" + urllib.parse.urlencode(query)
        body = None if document is None else json.dumps(document).encode()
        status, _, data = self.raw(method, path, body, {"Content-Type": "application/json"} if body else {}, timeout)
        answer = json.loads(data) if data else None
        if status >= 400:
            raise ApiError(status, answer)
        return answer

    def get(self, path, **query):
        return self.request("GET", path, **query)

    def post(self, path, document=None, **query):
        return self.request("POST", path, document, **query)

    def delete(self, path, **query):
        return self.request("DELETE", path, **query)

    def wait(self, operation, timeout=120):
        """The result of an operation that succeeds."""
        deadline = time.monotonic() + timeout * SCALE
        while operation["state"] in ("queued", "running"):
            if time.monotonic() > deadline:
                raise AssertionError(f"not done in {timeout} s: {operation}")
            operation = self.get(f"/v1/operations/{operation['id']}", wait=5)
        if operation["state"] != "succeeded":
            raise ApiError(0, operation)
        return operation.get("result")

    def do(self, method, path, document=None, timeout=120, **query):
        """Starts an operation and waits for its result."""
        return self.wait(self.request(method, path, document, **query), timeout)

    def events(self, timeout=30, **query):
        """Yields events until the stream ends; GeneratorExit closes it."""
        connection = self.connect(timeout * SCALE)
        try:
            connection.request("GET", "/v1/events?" + urllib.parse.urlencode(query))
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
                elif line.startswith(b": listening"):
                    yield None
        finally:
            connection.close()

    def websocket(self, path, timeout=30, **query):
        import websocket_client
        return websocket_client.WebSocket(self.connect(timeout * SCALE), path, query)


class Polderd:
    def __init__(self, *args, netns=True, prefix=(), env=None, state=None, binary=BIN / "polderd"):
        self.home = Path(tempfile.mkdtemp(prefix="pld-", dir="/tmp"))
        self.home.chmod(0o711)
        self.state = Path(state) if state else self.home / "s"
        self.run = self.home / "r"
        self.socket = self.home / "api.sock"
        self.args, self.prefix, self.env, self.binary = args, tuple(prefix), env, binary
        self.log_path = self.home / "log"
        self.namespace = None
        self.process = None
        self.client = Client(lambda timeout: UnixConnection(self.socket, timeout))
        if netns and os.geteuid() == 0:
            self.namespace = subprocess.Popen(["unshare", "-n", "sh", "-c", "ip link set lo up; echo; exec sleep infinity"],
                                              stdout=subprocess.PIPE)
            self.namespace.stdout.readline()

    def inside(self, *argv):
        """The command as it runs in the daemon's network namespace."""
        return (["nsenter", "-t", str(self.namespace.pid), "-n"] if self.namespace else []) + [str(a) for a in argv]

    def start(self, *more, wait=True):
        argv = self.inside(*self.prefix, self.binary, "--state-dir", self.state, "--run-dir", self.run, "--socket",
                           self.socket, *self.args, *more)
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                            env={**os.environ, **(self.env or {})})
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout=30):
        deadline = time.monotonic() + timeout * SCALE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self.client.get("/v1/system")
                return
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
        raise AssertionError(f"polderd is not ready:\n{self.log()}")

    def log(self):
        return self.log_path.read_text(errors="replace")

    def stop(self, number=signal.SIGTERM, timeout=30):
        """Ends polderd alone; instances run on. Its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout * SCALE)

    def restart(self, number=signal.SIGTERM):
        self.stop(number)
        return self.start()

    def children(self):
        """pids of what works for this state folder: found by their names and what they were given."""
        mine = [str(self.home).encode(), str(self.state).encode()]
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                name = (folder / "comm").read_text().strip()
                line = (folder / "cmdline").read_bytes()
                links = []
                if name in PROGRAMS:  # dnsmasq sees its folder as /mnt only, in a mount namespace of its own
                    links = [(folder / "mountinfo").read_bytes(), *(os.readlink(f).encode() for f in (folder / "fd").iterdir())]
            except OSError:
                continue
            if name in PROGRAMS and any(m in text for m in mine for text in [line, *links]):
                found.append(int(folder.name))
        return [pid for pid in found if pid != os.getpid()]

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30 * SCALE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.namespace:
            self.namespace.kill()
            self.namespace.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self):
        return self.start() if not self.process else self

    def __exit__(self, kind, value, trace):
        if kind:
            print(self.log())
        self.close()


class Platform(Polderd):
    """A polderd with the `polder` that speaks to it."""

    def polder(self, *args, stdin=b"", timeout=60, status=0):
        """What `polder` printed: (stdout, stderr); it must end with `status`, if that is not None."""
        done = subprocess.run(self.command(*args), input=stdin, capture_output=True, timeout=timeout * SCALE)
        assert status in (None, done.returncode), (args, done.returncode, done.stdout, done.stderr)
        return done.stdout.decode(), done.stderr.decode()

    def command(self, *args):
        return self.inside(BIN / "polder", "--socket", self.socket, *args)

    def document(self, name):
        return self.client.get(f"/v1/instances/{name}")

    def until(self, seen, timeout=30):
        """What `seen` returns, as soon as that is true."""
        deadline = time.monotonic() + timeout * SCALE
        while not (result := seen()):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)
        return result
