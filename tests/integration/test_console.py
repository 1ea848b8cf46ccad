"""Where a console's bytes go: stdio on a terminal, pty, file, and the virtio console."""
import fcntl
import os
import pty
import re
import select
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
