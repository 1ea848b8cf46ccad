"""Running machines: a process with a console, and agents that run commands in a guest or on the bare host."""
import os
import re
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

from . import machines

# libc and libcrypto on the bare host without AVX-512, which guests do not have either: the same code runs everywhere.
NATIVE_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C",
              "OPENSSL_ia32cap": ":~0xd0230000",
              "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD"}


class Failure(Exception):
    """A machine or a command that did not do what it should."""


class Process:
    """A machine with its console on stdio. Lines are kept with the time of their arrival."""

    def __init__(self, argv):
        self.argv = argv
        self.lines = []
        self.started = time.monotonic()
        self._news = threading.Condition()
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        rest = b""
        while chunk := os.read(self.process.stdout.fileno(), 65536):
            now = time.monotonic()
            *whole, rest = (rest + chunk).split(b"\n")
            with self._news:
                self.lines += [(now, line.decode(errors="replace").strip("\r")) for line in whole]
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process.poll() is None

    def wait_for(self, pattern, timeout, start=0):
        """(index, time, match) of the first line from `start` on that has `pattern`."""
        regex = re.compile(pattern)
        deadline, at = time.monotonic() + timeout, start
        with self._news:
            while True:
                for at in range(at, len(self.lines)):
                    if match := regex.search(self.lines[at][1]):
                        return at, self.lines[at][0], match
                at = max(start, len(self.lines))
                if time.monotonic() > deadline or not self._reader.is_alive():
                    why = f"not within {timeout:.0f} s" if self._reader.is_alive() else "the machine ended"
                    raise Failure(f"{pattern!r}: {why}; {' '.join(self.argv[:4])} ... said last:\n{self.tail()}")
                self._news.wait(0.5)

    def tail(self, count=12):
        return "\n".join(line for _, line in self.lines[-count:])

    def send(self, text):
        try:
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failure(f"the machine ended; it said last:\n{self.tail()}") from None

    def cpu_s(self):
        """Seconds of CPU that all its threads used."""
        ns = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            ns += int((task / "schedstat").read_text().split()[0])
        return ns / 1e9

    def close(self):
        if self.alive():
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(5)
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                pass


class Done:
    """One command that ran: what it printed, seconds by the machine's own clock and by the host's, and CPU seconds."""

    def __init__(self, text, status, seconds, host_s, cpu_s):
        self.text, self.status, self.seconds, self.host_s, self.cpu_s = text, status, seconds, host_s, cpu_s

    def share(self):
        """How many CPUs of the host the machine had: less than 1 for work that never waits means that the host was busy."""
        return self.cpu_s / self.host_s

    def clock_error(self):
        """What is wrong with the machine's clock, or None. The console's way costs the host some time."""
        if abs(self.seconds - self.host_s) > 0.25 + 0.05 * self.host_s:
            return f"the guest's clock saw {self.seconds:.3f} s, the host's {self.host_s:.3f} s"
        return None


class Agent:
    """The agent (bench/guest/agent.c) in a guest."""

    def __init__(self, machine, spec, boot_timeout):
        self.process = Process(machines.command_line(machine, spec))
        self.number = 0
        try:
            self.at, *_ = self.process.wait_for("^BENCH-AGENT ready", boot_timeout)
        except BaseException:
            self.process.close()
            raise

    def run(self, command, timeout=300):
        self.number += 1
        cpu_s = self.process.cpu_s()
        self.process.send(f"{self.number} {command}\n")
        begin, started, _ = self.process.wait_for(f"^BENCH-BEGIN {self.number}$", timeout, self.at)
        self.at, ended, match = self.process.wait_for(rf"^BENCH-END {self.number} (\d+) ([\d.]+)$", timeout, begin)
        text = "\n".join(line for _, line in self.process.lines[begin + 1:self.at])
        return Done(text, int(match[1]), float(match[2]), ended - started, self.process.cpu_s() - cpu_s)

    def close(self):
        self.process.close()


def children_cpu_s():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Native:
    """The same commands on the bare host, in a folder with the same files; on as many CPUs as the guests have."""

    def __init__(self, folder, cpus):
        self.folder = folder
        self.cpus = sorted(os.sched_getaffinity(0))[:cpus]

    def run(self, command, timeout=300):
        start, cpu_s = time.monotonic(), children_cpu_s()
        try:
            done = subprocess.run(["/bin/sh", "-c", command], cwd=self.folder, env=NATIVE_ENV, text=True, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, errors="replace",
                                  preexec_fn=lambda: os.sched_setaffinity(0, self.cpus))
        except subprocess.TimeoutExpired:
            raise Failure(f"{command!r} ran for more than {timeout} s on the host") from None
        seconds = time.monotonic() - start
        return Done(done.stdout, done.returncode, seconds, seconds, children_cpu_s() - cpu_s)

    def close(self):
        pass


class Fleet:
    """One agent a machine, started when first wanted and again after a failure."""

    def __init__(self, make):
        self.make = make  # machine name -> Agent or Native
        self.agents = {}

    def run(self, machine, command, timeout=300):
        try:
            if machine not in self.agents:
                self.agents[machine] = self.make(machine)
            done = self.agents[machine].run(command, timeout)
        except Failure:
            self.drop(machine)
            raise
        if done.status:
            raise Failure(f"{command!r} ended with status {done.status}:\n{done.text[-600:]}")
        return done

    def drop(self, machine):
        if agent := self.agents.pop(machine, None):
            agent.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for machine in list(self.agents):
            self.drop(machine)
