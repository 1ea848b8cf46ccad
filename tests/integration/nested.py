"""Run work on a host with KVM that is itself a virtual machine: QEMU TCG with nested SVM.

`run(tmp, script, files)` boots it, runs the shell script with `files` beside it, and returns status and output.
`run_tests(...)` runs tests of this folder there with --engine kvm and returns their outcomes.

What TCG's CPU does otherwise than a real one, and this host is set up around:
- A guest's XSETBV is not intercepted, so KVM does not learn of it and enters the guest with the old XCR0 the next time:
  AVX then faults, and XSAVE leaves registers out. The host has no XSAVE, so its guests use FXSAVE.
- The TSC is taken for unstable, although all CPUs' are one; KVM then promises no guest a kvmclock that is monotonic over
  its vCPUs. The host is told that it is reliable.
- With two CPUs, guests and the host itself were seen to fault at random, and to hang when the machine below had other work.
  The host has one; a whole run takes 14 to 16 minutes beside other tests (11 with two CPUs and nothing beside it).
"""
import collections
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import images
import vmm

HERE = Path(__file__).resolve().parent
STALL_S = 200  # without a result
# Libraries that the host has not; and mkfs.erofs where polderd, which keeps no PATH, looks for it.
INSTALL = """
ln -s /work/bin/mkfs.erofs /usr/local/bin/
for library in /work/lib/*; do
    [ -e /usr/lib/x86_64-linux-gnu/${library##*/} ] || ln -s $library /usr/lib/x86_64-linux-gnu/
done
ldconfig"""
TIMEOUT_SCALE = 6  # on idle CPUs no test needs its time limit even once


@dataclass
class Outcome:
    state: str  # passed, failed or skipped
    detail: str
    seconds: float = 0


def missing():
    """Why there can be no nested host here, or None."""
    for tool in ("qemu-system-x86_64", "mke2fs", "mkfs.erofs"):
        if not shutil.which(tool) and not Path("/sbin", tool).exists():
            return f"{tool} is not installed"
    return None


def work_disk(tmp, folder):
    disk = tmp / "work.ext4"
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) // 2**20 + 512
    subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d", folder, disk, f"{size}M"], check=True)
    return disk


def copy_libraries(folder, program):
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    for library in re.findall(r"=> (/\S+)", listing):
        shutil.copy(library, folder / "lib")


def add_program(folder, program):
    """Copy a program with its shared libraries; a wrapper of its name uses them."""
    copy_libraries(folder, program)
    shutil.copy(program, folder / f"{program.name}.real")
    wrapper = folder / program.name
    wrapper.write_text(f'#!/bin/sh\nexec env LD_LIBRARY_PATH=/work/lib /work/{program.name}.real "$@"\n')
    wrapper.chmod(0o755)


def add_platform(folder):
    """polderd and what it starts, as they are: polder-vmm gets no environment, so INSTALL makes their libraries known."""
    names = [vmm.BINARY.parent / name for name in ("polderd", "polder", "polder-vmm", "polder-img", "polder-unpack")] + [Path(shutil.which("mkfs.erofs"))]
    (folder / "bin").mkdir()
    for program in names:
        copy_libraries(folder, program)
        shutil.copy(program, folder / "bin")


def arguments(folder, host, work, disks, memory):
    argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max,-xsave", "-smp", "1", "-m", memory,
            "-nodefaults", "-display", "none", "-serial", "stdio", "-serial", f"file:{folder / 'nested.results'}", "-no-reboot",
            "-kernel", host / "vmlinuz", "-initrd", host / "nested.cpio.gz",
            "-append", "console=ttyS0 quiet loglevel=3 panic=-1 tsc=reliable",
            "-drive", f"file={host / 'root.ext4'},if=virtio,format=raw,snapshot=on",
            "-drive", f"file={work},if=virtio,format=raw,cache=unsafe"]
    for disk in disks:
        argv += ["-drive", f"file={disk},if=virtio,format=raw,snapshot=on"]
    return [str(a) for a in argv]


def progress(file):
    """Bytes of an output, but for what a CPU that hangs makes the kernel say again and again."""
    return len(re.sub(rb"(?m)^.*watchdog: BUG: soft lockup.*\n?", b"", file.read_bytes())) if file.exists() else 0


def wait_for_end(qemu, outputs, timeout, stop):
    """Until it ends, `timeout` is over, `stop` is set or `outputs` make no progress any more."""
    over = time.monotonic() + timeout
    size, stalled = -1, 0
    while time.monotonic() < min(over, stalled or over) and not (stop and stop.is_set()):
        try:
            return qemu.wait(5)
        except subprocess.TimeoutExpired:
            now = sum(map(progress, outputs))
            if now != size:
                size, stalled = now, time.monotonic() + STALL_S


def boot(tmp, folder, disks=(), memory="3G", timeout=600, stop=None):
    """Boot the nested host on the work in `folder`; (exit status of ./run or None, console text, text from its ttyS1)."""
    log, results = tmp / "nested.console", tmp / "nested.results"
    argv = arguments(tmp, images.image("nested"), work_disk(tmp, folder), disks, memory)
    with open(log, "wb") as out:
        qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(tmp)})
        try:
            wait_for_end(qemu, (log, results), timeout, stop)
        finally:
            qemu.kill()
            qemu.wait()
    text, more = (f.read_text(errors="replace").replace("\r", "") if f.exists() else "" for f in (log, results))
    found = re.search(r"NESTED-EXIT status=(\d+)", text)
    return (int(found[1]) if found else None), text, more


def output_of(text):
    return re.sub(r"(?s).*?NESTED-BEGIN\n|NESTED-EXIT.*", "", text)


def run(tmp, script, files=None, **options):
    """Run a shell script on a nested host with {name: bytes} beside it; (status, output)."""
    folder = tmp / "work"
    folder.mkdir()
    for name, content in {**(files or {}), "run": b"#!/bin/sh\n" + script.encode()}.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
    status, text, _ = boot(tmp, folder, **options)
    return status, output_of(text)


def copy_images(folder, names):
    """Small image files are copied; disks become devices from vdc on, linked by name. Returns the disks."""
    disks = []
    for name in names:
        target = folder / "images" / name
        target.mkdir(parents=True)
        for file in images.image(name).iterdir():
            if file.suffix == ".ext4":
                (target / file.name).symlink_to(f"/dev/vd{chr(ord('c') + len(disks))}")
                disks.append(file)
            else:
                shutil.copy(file, target)
    return disks


def run_tests(tmp, nodes, image_names, programs, timeout, stop=None, boot=boot):
    """Run the tests `nodes` (file::name) with engine kvm on a nested host: {node: Outcome}. Setting `stop` ends it early.

    One at a time. A test that failed, or in which the host died or hung, runs once more in another host, where those that had not
    had their turn run too; one that passes only the second time says so in its outcome's detail.
    """
    folder = tmp / "work"
    shutil.copytree(HERE, folder / "tests/integration", ignore=shutil.ignore_patterns("__pycache__"))
    add_program(folder, vmm.BINARY)
    add_platform(folder)
    disks = copy_images(folder, image_names)
    (folder / "images/programs").mkdir(parents=True)
    for name in programs:
        if program := images.static_program(tmp, name):
            (folder / "images/programs" / name).write_bytes(program)
    (folder / "run").write_text(f"""#!/bin/sh
export POLDER_VMM=/work/{vmm.BINARY.name} POLDER_IMAGES=/work/images POLDER_KVM=direct POLDER_TIMEOUT_SCALE={TIMEOUT_SCALE}
export POLDER_RESULTS=/dev/ttyS1 POLDER_BIN=/work/bin PATH=/work/bin:$PATH
{INSTALL}
cd /work/tests/integration
python3 -m pytest -p no:cacheprovider -q --color=no $(cat /work/nodes)
""")
    (folder / "run").chmod(0o755)
    outcomes, tries, over = {}, collections.Counter(), time.monotonic() + timeout
    while left := [node for node in nodes if tries[node] < 2 and (node not in outcomes or outcomes[node].state == "failed")]:
        if time.monotonic() > over or (stop and stop.is_set()):
            break
        (folder / "nodes").write_text("\n".join(left))
        status, text, results = boot(tmp, folder, disks, timeout=over - time.monotonic(), stop=stop)
        found = parse_results(results)
        if unfinished := [node for node in left if node not in found]:
            found[unfinished[0]] = Outcome("failed", f"nested host ended in it: status {status}\n{vmm.tail(output_of(text), 40)}")
        for node, outcome in found.items():
            tries[node] += 1
            if outcome.state == "passed" and node in outcomes:
                outcome.detail = f"only the second time; the first: {outcomes[node].detail}"
            outcomes[node] = outcome
    return {node: outcomes.get(node, Outcome("failed", f"no result within {timeout} s")) for node in nodes}


def report(file, node, state, detail, seconds):
    """A test's outcome as a line of `file`; what parse_results reads."""
    with open(file, "a", encoding="utf-8") as out:
        print(json.dumps([node.split("/")[-1], state, detail, seconds]), file=out)


def parse_results(text):
    outcomes = {}
    for line in text.splitlines():
        try:
            node, *outcome = json.loads(line)
        except ValueError:  # the host died within the line
            continue
        outcomes[node] = Outcome(*outcome)
    return outcomes
