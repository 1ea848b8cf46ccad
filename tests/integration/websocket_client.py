"""A WebSocket client for tests: binary messages whose first byte is the stream (RFC 6455, client frames masked)."""
import base64
import json
import os
import struct
import urllib.parse

BINARY, CLOSE, PING, PONG = 2, 8, 9, 10


class WebSocket:
    def __init__(self, connection, path, query=None):
        connection.connect()
        self.socket = connection.sock
        target = path + ("?" + urllib.parse.urlencode(query) if query else "")
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET {target} HTTP/1.1\r\nHost: polderd\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                             f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self._fill()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        self.status = int(head.split()[1])
        self.head = head.decode()

    def _fill(self):
        chunk = self.socket.recv(65536)
        if not chunk:
            raise EOFError(self.buffer)
        self.buffer += chunk

    def _take(self, count):
        while len(self.buffer) < count:
            self._fill()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def send_frame(self, opcode, payload, final=True):
        mask = os.urandom(4)
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else (
            b"\xfe" + struct.pack(">H", size) if size < 65536 else b"\xff" + struct.pack(">Q", size))
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self.socket.sendall(bytes([(0x80 if final else 0) | opcode]) + length + mask + masked)

    def send(self, stream, data=b""):
        self.send_frame(BINARY, bytes([stream]) + data)

    def control(self, **document):
        self.send(3, json.dumps(document).encode())

    def receive(self):
        """(stream, bytes), or None when the server has said goodbye."""
        while True:
            first, second = self._take(2)
            size = second & 0x7f
            if size == 126:
                size = struct.unpack(">H", self._take(2))[0]
            elif size == 127:
                size = struct.unpack(">Q", self._take(8))[0]
            payload = self._take(size)
            opcode = first & 15
            if opcode == BINARY:
                return payload[0], payload[1:]
            if opcode == PING:
                self.send_frame(PONG, payload)
            if opcode == CLOSE:
                self.send_frame(CLOSE, payload[:2])
                return None

    def collect(self):
        """Everything up to the end: ({stream: bytes}, [control documents])."""
        streams, controls = {1: b"", 2: b""}, []
        while message := self.receive():
            if message[0] == 3:
                controls.append(json.loads(message[1]))
            else:
                streams[message[0]] = streams.get(message[0], b"") + message[1]
        return streams, controls

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()
