"""Start polder-vmm, watch its console, type into it, and always reap it.

The console is stdio over pipes unless a test passes its own --console. A Vmm owns exactly one process, which it
started; leaving the `with` block ends it, whatever happened.
"""
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("POLDER_VMM", TOP / "build/bin/polder-vmm"))
SCALE = float(os.environ.get("POLDER_TIMEOUT_SCALE", "1"))


class ConsoleTimeout(AssertionError):
    pass


def tail(text, lines=25):
    return "\n".join(text.splitlines()[-lines:])


class Vmm:
    def __init__(self, *args, prefix=(), env=None, cwd=None, fds=()):
        self.argv = [str(a) for a in (*prefix, BINARY, *args)]
        self.text = ""
        self.errors = ""
        self.started = time.monotonic()
        self.ended = None
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=cwd, env={**os.environ, **(env or {})}, start_new_session=True, pass_fds=fds)
        self._readers = [threading.Thread(target=self._read, args=a, daemon=True)
                         for a in ((self.process.stdout, "text"), (self.process.stderr, "errors"))]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe, name):
        while chunk := os.read(pipe.fileno(), 65536):
            with self._news:
                setattr(self, name, getattr(self, name) + chunk.decode(errors="replace").replace("\r", ""))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def pid(self):
        return self.process.pid

    def wait_for(self, pattern, timeout=60, start=0):
        """The match of `pattern` (multi-line) in the console text from offset `start` on."""
        regex = re.compile(pattern, re.M)
        deadline = time.monotonic() + timeout * SCALE
        with self._news:
            while not (match := regex.search(self.text, start)):
                over = not any(r.is_alive() for r in self._readers)
                left = deadline - time.monotonic()
                if over or left <= 0:
                    why = "polder-vmm ended" if over else f"not within {timeout * SCALE:.0f} s"
                    raise ConsoleTimeout(f"{pattern!r}: {why}\n{self.describe()}")
                self._news.wait(min(left, 1))
        return match

    def send(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def wait(self, timeout=60):
        """The exit status, after the process ended by itself and all its output was read."""
        try:
            status = self.process.wait(timeout * SCALE)
        except subprocess.TimeoutExpired:
            raise ConsoleTimeout(f"polder-vmm still runs after {timeout * SCALE:.0f} s\n{self.describe()}") from None
        self.ended = time.monotonic()
        for reader in self._readers:
            reader.join(5)
        return status

    def rss_kib(self):
        """Resident memory of the process, guest memory included."""
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[1])

    def own_kib(self, memory_mib):
        """Memory of the process but for the guest's, which is the one mapping that is as large. By proportional set size: translated
        code has two mappings."""
        total, counted = 0, True
        for line in Path(f"/proc/{self.pid}/smaps").read_text().splitlines():
            if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                counted = int(match[2], 16) - int(match[1], 16) < memory_mib << 20
            elif counted and (match := re.match(r"Pss: +(\d+) kB", line)):
                total += int(match[1])
        return total

    def describe(self):
        return f"$ {' '.join(self.argv)}\n--- stderr\n{tail(self.errors)}\n--- console\n{tail(self.text)}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for reader in self._readers:
            reader.join(5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                pipe.close()
            except BrokenPipeError:
                pass
