"""Speaks with polder-agent: frames over a unix socket, through polder-vmm's vsock socket or directly."""
import io
import json
import os
import socket
import struct
import tarfile
import threading
import time

REQUEST, REPLY, DATA_IN, DATA_OUT, DATA_ERR, CLOSE_IN, RESIZE, SIGNAL, EXIT = range(1, 10)
SCALE = float(os.environ.get("POLDER_TIMEOUT_SCALE", "1"))


class Refused(AssertionError):
    """The agent's reply was an error; `code` is what it said the exit code would be."""

    def __init__(self, reply):
        super().__init__(reply["error"])
        self.code = reply.get("code")


class Session:
    """One connection; `out` and `err` collect what came."""

    def __init__(self, path, vsock, timeout=20):
        deadline = time.monotonic() + timeout * SCALE
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout * SCALE)
            try:
                self.socket.connect(str(path))
                if not vsock or self._handshake():
                    break
            except (ConnectionError, FileNotFoundError):
                pass
            self.socket.close()
            assert time.monotonic() < deadline, "the agent does not listen"
            time.sleep(0.01)
        self.stream = self.socket.makefile("rb", 1 << 17)
        self.out, self.err, self.code = bytearray(), bytearray(), None

    def _handshake(self):
        self.socket.sendall(b"CONNECT 1024\n")
        line = b""
        while not line.endswith(b"\n"):
            byte = self.socket.recv(1)
            if not byte:
                return False
            line += byte
        return line.startswith(b"OK ")

    def send(self, kind, payload=b""):
        if isinstance(payload, dict):
            payload = json.dumps(payload).encode()
        self.socket.sendall(struct.pack("<IB", len(payload), kind) + payload)

    def feed(self, data):
        """Sends all of it and the end; None: nothing."""
        for at in range(0, len(data or b""), 65536):
            self.send(DATA_IN, data[at:at + 65536])
        if data is not None:
            self.send(CLOSE_IN)

    def _exactly(self, length):
        data = self.stream.read(length)
        if len(data) < length:
            raise EOFError
        return data

    def receive(self):
        length, kind = struct.unpack("<IB", self._exactly(5))
        return kind, self._exactly(length)

    def request(self, op, **params):
        self.send(REQUEST, {"op": op, **params})
        kind, payload = self.receive()
        assert kind == REPLY
        reply = json.loads(payload)
        if "error" in reply:
            raise Refused(reply)
        assert reply.pop("ok") is True
        return reply

    def step(self):
        """Takes one frame; False when it was EXIT."""
        kind, payload = self.receive()
        if kind == DATA_OUT:
            self.out += payload
        elif kind == DATA_ERR:
            self.err += payload
        else:
            assert kind == EXIT
            self.exit = json.loads(payload)
            self.code = self.exit["code"]
        return kind != EXIT

    def wait(self):
        while self.step():
            pass
        return self.code

    def wait_for(self, text):
        while text not in self.out:
            assert self.step(), f"ended with {self.code} before {text!r}: {self.out!r} {self.err!r}"

    def close(self):
        self.stream.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Agent:
    """Where an agent listens."""

    def __init__(self, path, vsock):
        self.path, self.vsock = path, vsock

    def session(self):
        return Session(self.path, self.vsock)

    def call(self, op, **params):
        with self.session() as s:
            return s.request(op, **params)

    def open(self, op, **params):
        s = self.session()
        try:
            s.reply = s.request(op, **params)
        except BaseException:
            s.close()
            raise
        return s

    def run(self, *args, data=None, **params):
        """An exec to its end: exit code, output, errors."""
        with self.open("exec", args=args, stdin=data is not None, **params) as s:
            feeder = threading.Thread(target=s.feed, args=(data,))
            feeder.start()  # beside: whoever sends without reading may wait for ever
            s.wait()
            feeder.join()
            return s.code, bytes(s.out), bytes(s.err)

    def put(self, path, archive):
        with self.open("put", path=path) as s:
            s.feed(archive)
            s.wait()
            return s.code, s.err.decode()

    def get(self, path):
        with self.open("get", path=path) as s:
            s.wait()
            return s.code, bytes(s.out), s.err.decode()


def tar_of(*members):
    """An archive of (name, content) files and TarInfo objects."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size, info.mode, info.mtime = len(member[1]), 0o640, 1000000000
            tar.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()
