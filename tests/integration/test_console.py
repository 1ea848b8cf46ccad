"""Where a console's bytes go: stdio on a terminal, pty, file, and the virtio console."""
import fcntl
import os
import pty
import re
import select
import socket
import struct
import subprocess
import termios
import time

from guests import CMDLINE, busybox
from images import image, initramfs
from vmm import BINARY, SCALE, Vmm


def read_until(fd, pattern, timeout):
    """Text from a pty until `pattern` shows."""
    text, deadline = "", time.monotonic() + timeout * SCALE
    while not re.search(pattern, text, re.M):
        left = deadline - time.monotonic()
        assert left > 0, f"{pattern!r} not seen:\n{text}"
        if select.select([fd], [], [], min(left, 1))[0]:
            text += os.read(fd, 4096).decode(errors="replace").replace("\r", "")
    return text


def test_file(tmp):
    path = tmp / "console.log"
    with busybox("jit", tmp, "--console", f"file={path}", mode="boot") as vmm:
        assert vmm.wait(120) == 0
        assert "POLDER-INIT" in path.read_text() and "POLDER-INIT" not in vmm.text


def test_none(tmp):
    with busybox("jit", tmp, "--console", "none", mode="boot") as vmm:
        assert vmm.wait(120) == 0
        assert vmm.text == ""


def test_pty(tmp):
    script = "echo GUEST-UP; read -r line; echo \"got <$line>\""
    with busybox("jit", tmp, "--console", "pty", script=script) as vmm:
        deadline = time.monotonic() + 20 * SCALE
        while not (found := re.search(r"console on (/dev/pts/\d+)", vmm.errors)):
            assert time.monotonic() < deadline, vmm.describe()
            time.sleep(0.05)
        fd = os.open(found[1], os.O_RDWR | os.O_NOCTTY)
        try:
            read_until(fd, "^GUEST-UP$", 120)
            os.write(fd, b"tulip\n")
            read_until(fd, "^got <tulip>$", 30)
        finally:
            os.close(fd)
        assert vmm.wait(60) == 0


def on_terminal(tmp, *args, script, size=(40, 132)):
    """polder-vmm on a terminal of that size: (process, our end of it)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    process = subprocess.Popen(
        [BINARY, "--engine", "jit", "--kernel", image("busybox") / "vmlinuz", "--initrd", initramfs(tmp, script), "--memory", "256M",
         "--cmdline", f"{CMDLINE} polder.test=run", *map(str, args)],
        stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    return process, ours, theirs


def test_terminal_and_its_escape_key(tmp):
    process, ours, theirs = on_terminal(tmp, script="echo GUEST-UP; read -r line; echo \"got <$line>\"; sleep 100")
    before = termios.tcgetattr(theirs)
    try:
        read_until(ours, "^GUEST-UP$", 120)
        assert not termios.tcgetattr(theirs)[3] & (termios.ICANON | termios.ISIG)
        os.write(ours, b"one\x03\x7ftwo\n")
        read_until(ours, "got <", 30)
        os.write(ours, b"\x1d")
        assert process.wait(20 * SCALE) == 0
        assert termios.tcgetattr(theirs)[3] & termios.ICANON and before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_virtio_console_follows_the_window(tmp):
    script = """
        modprobe -a virtio_pci virtio_console
        i=0; while [ ! -c /dev/hvc0 ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
        exec </dev/hvc0 >/dev/hvc0 2>&1
        stty raw -echo icrnl opost onlcr
        echo "SIZE $(stty size)"; read -r line; echo "got <$line>"
        i=0; while [ "$(stty size)" != "50 100" ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done
        echo "SIZE $(stty size)"
    """
    process, ours, theirs = on_terminal(tmp, "--console", f"file={tmp}/com1", "--virtio-console", "stdio", script=script)
    try:
        read_until(ours, "^SIZE 40 132$", 120)
        os.write(ours, b"tulip\n")
        read_until(ours, "got <tulip>", 30)
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 100, 0, 0))
        read_until(ours, "^SIZE 50 100$", 30)
        assert process.wait(60 * SCALE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_two_consoles_on_stdio_are_refused(tmp):
    with Vmm("--kernel", image("busybox") / "vmlinuz", "--virtio-console", "stdio") as vmm:
        assert vmm.wait(20) == 1
        assert "stdio" in vmm.errors and len(vmm.errors.strip().splitlines()) == 1


def connect(path):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20 * SCALE)
    deadline = time.monotonic() + 20 * SCALE
    while True:
        try:
            client.connect(str(path))
            return client
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def receive_until(client, pattern):
    text = bytearray()
    while not re.search(pattern, text[-70000:]):
        piece = client.recv(65536)
        assert piece, f"{pattern!r}: dropped after {text[-200:]!r}"
        text += piece
    return text


def test_several_clients_of_a_socket(tmp):
    path, log = tmp / "console.sock", tmp / "console.log"
    log.write_text("of the boot before\n")
    with busybox("jit", tmp, "--console", f"socket={path},log={log}", mode="shell") as vmm:
        with connect(path) as typist, connect(path) as watcher:
            receive_until(typist, rb"# ")
            typist.sendall(b"echo $((6 * 7)) answers\n")
            for client in (typist, watcher):
                receive_until(client, rb"\n42 answers")
            with connect(path) as late:
                watcher.shutdown(socket.SHUT_WR)
                late.sendall(b"echo again; poweroff -f\n")
                assert b"42 answers" not in receive_until(watcher, rb"\nagain")
        assert vmm.wait(60) == 0, vmm.describe()
    assert not path.exists()
    text = log.read_text()
    assert text.startswith("of the boot before\n") and "42 answers" in text and "\nagain" in text


def test_virtio_console_on_a_socket(tmp):
    path, log = tmp / "hvc.sock", tmp / "hvc.log"
    script = "exec 3<>/dev/hvc0; echo ready >&3; read go <&3; echo $go, last words >&3"
    with busybox("jit", tmp, "--virtio-console", f"socket={path},log={log}", script=script) as vmm:
        with connect(path) as client:
            receive_until(client, rb"ready")
            client.sendall(b"gone\n")
            receive_until(client, rb"gone, last words")
        assert vmm.wait(60) == 0, vmm.describe()
    assert log.read_text().endswith("gone, last words\n")
