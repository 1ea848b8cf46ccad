"""The command line against servers that are none: hostile answers, and completion in a real shell."""
import os
import shutil
import socket
import subprocess
import threading

import pytest

import vmm

POLDER = vmm.BINARY.parent / "polder"
pytestmark = pytest.mark.needs_no_vmm


def polder(*args, env=None, timeout=60):
    done = subprocess.run([POLDER, *args], capture_output=True, timeout=timeout, env={**os.environ, **(env or {})})
    return done.returncode, done.stdout, done.stderr


class Server:
    """Answers each connection with the same bytes, whatever it was asked."""

    def __init__(self, tmp, answer):
        self.path, self.answer = tmp / "s", answer
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(65536)
                    connection.sendall(self.answer)
                except OSError:
                    pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


def http(body, status="200 OK", length=None):
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.mark.parametrize("answer, said", [
    (b"", b"broke the connection off"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", b"no proper answer"),
    (http(b"<html>"), b"no JSON"),
    (http(b"[", length=100000), b"broke the connection off"),
    (http(b"oops", "500 Internal Server Error"), b"without saying why"),
    (http(b'{"error":{"code":"conflict","message":"\\u001b]0;owned\\u0007 no"}}', "409 Conflict"), b"?]0;owned? no"),
], ids=["nothing", "ssh", "html", "short", "no reason", "escapes"])
def test_hostile_answers(tmp, answer, said):
    with Server(tmp, answer) as server:
        status, out, err = polder("--socket", str(server.path), "ps")
    assert status == 1 and said in err and err.count(b"\n") == 1 and b"\x1b" not in err, err
    assert out == b""


def test_hostile_names_stay_out_of_tables(tmp):
    body = b'[{"name":"a\\u001b[2J\\u009b","status":{"state":"running"},"spec":{"image":"x\\ny","command":[1,{},null]}},7,null]'
    with Server(tmp, http(body)) as server:
        status, out, _ = polder("--socket", str(server.path), "ps", "-a")
    assert status == 0 and b"\x1b" not in out and b"\xc2\x9b" not in out and b"a?[2J?" in out and b"x?y" in out


@pytest.mark.parametrize("args", [["exec", "web", "--", "true"], ["console", "web"]])
def test_a_server_that_speaks_no_websocket(tmp, args):
    with Server(tmp, b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: AAAA\r\n\r\n") as server:
        status, _, err = polder("--socket", str(server.path), *args)
    assert status == 1 and b"does not speak WebSocket" in err


def test_nobody_answers(tmp):
    status, _, err = polder("--socket", str(tmp / "none"), "ps")
    assert status == 1 and b"no polderd answers at" in err and b"--socket PATH" in err
    status, _, err = polder("ps", env={"POLDER_SOCKET": str(tmp / "other")})
    assert status == 1 and b"/other" in err


@pytest.mark.parametrize("args, said", [
    (["stpo", "web"], b"did you mean 'polder stop'?"), (["image", "pul", "x"], b"did you mean 'polder image pull'?"),
    (["run"], b"too few arguments"), (["cp", "a", "b", "c"], b"one argument too many"), (["ps", "--nope"], b"unknown option '--nope'"),
    (["ps", "-o", "yaml"], b"none of table"), (["run", "-m", "much", "x"], b"no size"), (["cp", "a", "b"], b"INSTANCE:/PATH"),
    (["run", "-v", "/etc:/etc", "x"], b"polder volume create"), (["--remote", "http://x", "ps"], b"https://HOST:PORT"),
])
def test_usage(args, said):
    status, _, err = polder(*args)
    assert status == 2 and said in err and err.count(b"\n") == 1, err


def bash_completes(line, socket_path):
    script = f"""source <({POLDER} completion bash)
COMP_LINE="$1" COMP_POINT=${{#1}} COMPREPLY=()
_polder
printf '%s\\n' "${{COMPREPLY[@]}}" """
    env = {**os.environ, "POLDER_SOCKET": str(socket_path), "PATH": f"{POLDER.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script, "bash", line], capture_output=True, text=True, timeout=60, env=env)
    return done.stdout.split()


def test_bash_completion(tmp):
    with Server(tmp, http(b'[{"name":"web"},{"name":"db"},{"name":"x\\u001b"}]')) as server:
        assert bash_completes("polder imag", server.path) == ["image"]
        assert bash_completes("polder image pu", server.path) == ["pull", "push"]
        assert bash_completes("polder run --restart on", server.path) == ["on-failure"]
        assert bash_completes("polder stop ", server.path) == ["web", "db", "x?"]
        assert bash_completes("polder stop web d", server.path) == ["db"]
        assert "--publish" in bash_completes("polder run --pu", server.path)
        assert bash_completes("polder cp we", server.path)[-1] == "web:"


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_bash_completion_is_clean():
    _, script, _ = polder("completion", "bash")
    done = subprocess.run(["shellcheck", "-s", "bash", "-"], input=script, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout.decode()
