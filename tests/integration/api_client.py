"""A client of polder-vmm's API socket."""
import http.client
import json
import socket
import time

from vmm import SCALE


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30 * SCALE)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()
        self.json = json.loads(self.text) if self.text else None

    @property
    def fault(self):
        return (self.json or {}).get("fault_message", "")


class Client:
    """One connection a request, as curl does, unless a test keeps one of its own."""

    def __init__(self, path, timeout=20):
        self.path = path
        deadline = time.monotonic() + timeout * SCALE
        while True:
            try:
                self.call("GET", "/")
                return
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def call(self, method, path, body=None, raw=None):
        connection = UnixConnection(self.path)
        data = raw if raw is not None else None if body is None else json.dumps(body)
        try:
            try:
                connection.request(method, path, data, {"Content-Type": "application/json"} if data is not None else {})
            except BrokenPipeError:
                pass  # refused before all was sent; the answer is there
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path):
        answer = self.call("GET", path)
        assert answer.status == 200, answer.text
        return answer.json

    def ok(self, method, path, body):
        answer = self.call(method, path, body)
        assert answer.status == 204, f"{method} {path}: {answer.status} {answer.text}"
        return answer

    def put(self, path, **body):
        return self.ok("PUT", path, body)

    def patch(self, path, **body):
        return self.ok("PATCH", path, body)

    def refused(self, method, path, body, *parts, status=400):
        answer = self.call(method, path, body)
        assert answer.status == status, f"{method} {path}: {answer.status} {answer.text}"
        for part in parts:
            assert part in answer.fault, answer.text
        return answer
