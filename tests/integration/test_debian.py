"""Debian 12 with systemd from its disk, work in it, and `make run`'s two faces."""
import fcntl
import hashlib
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

import pytest

import vmm as vmm_module
from guests import debian, finish
from images import disk_copy, image
from vmm import SCALE, TOP


def test_systemd_to_multi_user_and_poweroff(engine, tmp):
    disk = disk_copy(tmp, image("debian") / "debian.ext4")
    with debian(engine, tmp, cmdline="polder.report", disk=disk) as vmm:
        vmm.wait_for("POLDER-REPORT end:", 300)
        assert vmm.wait(60) == 0
        report = dict(re.findall(r"POLDER-REPORT (\S+): (.*)", vmm.text))
    assert report["os"].startswith("Debian GNU/Linux 12")
    assert report["cpus"] == "2"
    assert report["disk"].startswith("ok")
    assert report["failed-units"] == "none"
    fsck = subprocess.run(["/sbin/e2fsck", "-fn", disk], capture_output=True, text=True)
    assert fsck.returncode == 0, fsck.stdout


@pytest.mark.parametrize("initrd", ["initrd-fast", "initrd.img"])
def test_run_guest_report(tmp, initrd):
    fast = ["--fast"] if initrd == "initrd-fast" else []
    done = subprocess.run([TOP / "tools/run-guest", *fast, "--engine", "jit"], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^start to multi-user: \d+\.\d\d s$", done.stdout, re.M), done.stdout


class Terminal:
    """A terminal of 33x101 with a program in it; answers the question for its size."""

    def __init__(self, argv):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        self.text = ""
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)

    def wait_for(self, pattern, timeout):
        deadline = time.monotonic() + timeout * SCALE
        while not re.search(pattern, self.text, re.M):
            assert time.monotonic() < deadline, f"{pattern!r} not seen\n{vmm_module.tail(self.text)}"
            if select.select([self.master], [], [], 1)[0]:
                try:
                    chunk = os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"{pattern!r}: program ended\n{vmm_module.tail(self.text)}") from None
                self.text += chunk.replace("\r", "")
                if "\x1b[6n" in chunk:
                    os.write(self.master, b"\x1b[33;101R")

    def send(self, text):
        os.write(self.master, text.encode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, 15)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, 9)
                self.process.wait()
        os.close(self.master)


def test_interactive_console():
    image("debian")
    with Terminal([TOP / "tools/run-guest", "--fast", "--engine", "jit"]) as terminal:
        terminal.wait_for(r"root@polder:~# ?", 240)
        terminal.send("stty size; echo answer=$((6 * 7))\n")
        terminal.wait_for(r"^answer=42$", 30)
        assert re.search(r"(?<!\d )33 101$", terminal.text, re.M), terminal.text[-500:]
        terminal.send("\x1d")  # Ctrl-]
        terminal.process.wait(20)


LOAD = {
    "gcc": r"""
        cat >t.c <<'END'
#include <stdio.h>
#include <math.h>
int main(void) { double s = 0; for (int i = 1; i <= 100000; i++) s += 1.0 / i / i; printf("basel %.6f\n", s); return 0; }
END
        gcc -O2 -Wall t.c -o t -lm && ./t""",
    "python": "python3 -c 'import json, hashlib, sqlite3; print(\"python\", hashlib.md5(json.dumps(list(range(10000))).encode()).hexdigest())'",
    "perl": "perl -e 'my %h; $h{$_ % 97} += $_ for 1..100000; print \"perl $h{13}\\n\"'",
    "sqlite": "sqlite3 /root/t.db 'create table t(x); with recursive c(n) as (values(1) union all select n+1 from c where n<20000) "
              "insert into t select n*n from c; select \"sqlite \" || sum(x) from t; pragma integrity_check'",
    "dpkg": "cd /var/cache && dpkg-deb --version | head -1 && dpkg-repack --version >/dev/null 2>&1; mkdir -p /root/p/DEBIAN /root/p/opt && "
            "printf 'Package: polder-test\\nVersion: 1\\nArchitecture: all\\nMaintainer: t <t@t>\\nDescription: t\\n' >/root/p/DEBIAN/control && "
            "cp -r /usr/lib/python3 /usr/lib/python3.11 /root/p/opt/ && dpkg-deb -Zgzip -b /root/p /root/p.deb && dpkg -i /root/p.deb && "
            "diff -r /usr/lib/python3.11 /opt/python3.11 && dpkg -r polder-test",
}
EXPECTED = {
    "gcc": "basel 1.644924",
    "python": None,  # computed by the host's Python
    "perl": "perl " + str(sum(i for i in range(1, 100001) if i % 97 == 13)),
    "sqlite": "sqlite " + str(sum(n * n for n in range(1, 20001))),
    "dpkg": "Removing polder-test",
}


LONG = {"dpkg": "it forks and copies for minutes on a translated CPU"}


@pytest.mark.parametrize("load", [pytest.param(load, marks=[pytest.mark.not_nested(LONG[load])] if load in LONG else []) for load in LOAD])
def test_load(engine, tmp, load):
    import json
    expected = EXPECTED[load] or "python " + hashlib.md5(json.dumps(list(range(10000))).encode()).hexdigest()
    with debian(engine, tmp, name="debian-full", script=LOAD[load]) as vmm:
        assert expected in finish(vmm, 300)


@pytest.mark.not_nested("QEMU 7.2's TCG host dies under it: page faults of its vCPU thread recurse to the end of the kernel stack")
def test_sha256_of_1_gib_against_the_host(engine, tmp):
    stream = "openssl enc -aes-128-ctr -K 000102030405060708090a0b0c0d0e0f -iv 0 -in /dev/zero 2>/dev/null | head -c 1G | sha256sum"
    with debian(engine, tmp, name="debian-full", script=f"{stream} | sed 's/^/SUM /'") as vmm:
        mine = subprocess.run(stream, shell=True, capture_output=True, text=True).stdout.split()[0]
        assert f"SUM {mine}" in finish(vmm, 300)


def test_openssl_known_answers(engine, tmp):
    """Digests and ciphers that use the CPU's vector and crypto instructions give the host's values."""
    script = "\n".join(f"head -c 1M /dev/zero | openssl dgst -{d} | sed 's/.*= /{d} /'" for d in ("sha1", "sha256", "sha512", "sha3-256", "blake2b512"))
    script += "\n" + "\n".join(f"head -c 1M /dev/zero | openssl enc -{c} -K {'01' * k} -iv {'00' * 16} | openssl sha256 | sed 's/.*= /{c} /'"
                               for c, k in (("aes-128-cbc", 16), ("aes-256-ctr", 32), ("chacha20", 32)))
    mine = subprocess.run(script, shell=True, capture_output=True, text=True).stdout.strip()
    assert len(mine.splitlines()) == 8
    with debian(engine, tmp, name="debian-full", script=script) as vmm:
        text = finish(vmm, 240)
        for line in mine.splitlines():
            assert line in text, f"{line}\n{vmm_module.tail(text)}"
