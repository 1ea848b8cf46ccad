"""Run work on a host with KVM that is itself a virtual machine: QEMU TCG with nested SVM.

`run(tmp, script, files)` boots it, runs the shell script with `files` beside it, and returns status and output.
`run_tests(...)` runs tests of this folder there with --engine kvm, and returns their outcomes from JUnit XML.

What TCG's CPU does otherwise than a real one, and this host is set up around:
- A guest's XSETBV is not intercepted, so KVM does not learn of it and enters the guest with the old XCR0 the next time:
  AVX then faults, and XSAVE leaves registers out. The host has no XSAVE, so its guests use FXSAVE.
- The TSC is taken for unstable, although all CPUs' are one; KVM then promises no guest a kvmclock that is monotonic over
  its vCPUs. The host is told that it is reliable.
"""
import os
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import images
import vmm

HERE = Path(__file__).resolve().parent
TIMEOUT_SCALE = 12  # a guest in a translated host is that much slower than one on jit


@dataclass
class Outcome:
    state: str  # passed, failed or skipped
    detail: str


def missing():
    """Why there can be no nested host here, or None."""
    for tool in ("qemu-system-x86_64", "mke2fs", "debugfs"):
        if not shutil.which(tool) and not Path("/sbin", tool).exists():
            return f"{tool} is not installed"
    return None


def work_disk(tmp, folder):
    disk = tmp / "work.ext4"
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) // 2**20 + 512
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", folder, disk, f"{size}M"], check=True)
    return disk


def add_program(folder, program):
    """Copy a program with its shared libraries; a wrapper of its name uses them."""
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    for library in re.findall(r"=> (/\S+)", listing):
        shutil.copy(library, folder / "lib")
    shutil.copy(program, folder / f"{program.name}.real")
    wrapper = folder / program.name
    wrapper.write_text(f'#!/bin/sh\nexec env LD_LIBRARY_PATH=/work/lib /work/{program.name}.real "$@"\n')
    wrapper.chmod(0o755)


def boot(tmp, folder, disks=(), cpus=2, memory="3G", timeout=600):
    """Boot the nested host on the work in `folder`; (exit status of ./run or None, console text, work disk)."""
    host = images.image("nested")
    work = work_disk(tmp, folder)
    argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max,-xsave", "-smp", cpus, "-m", memory,
            "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", host / "vmlinuz", "-initrd", host / "nested.cpio.gz", "-append", "console=ttyS0 quiet tsc=reliable",
            "-drive", f"file={host / 'root.ext4'},if=virtio,format=raw,snapshot=on",
            "-drive", f"file={work},if=virtio,format=raw,cache=unsafe"]
    for disk in disks:
        argv += ["-drive", f"file={disk},if=virtio,format=raw,snapshot=on"]
    log = tmp / "nested.console"
    with open(log, "wb") as out:
        qemu = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                env={**os.environ, "TMPDIR": str(tmp)})
        try:
            qemu.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            qemu.kill()
            qemu.wait()
    text = log.read_text(errors="replace").replace("\r", "")
    found = re.search(r"NESTED-EXIT status=(\d+)", text)
    return (int(found[1]) if found else None), text, work


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


def run_tests(tmp, nodes, image_names, programs, timeout):
    """Run the tests `nodes` (file::name) with engine kvm on a nested host: {node: Outcome}."""
    folder = tmp / "work"
    tests = folder / "tests/integration"
    shutil.copytree(HERE, tests, ignore=shutil.ignore_patterns("__pycache__"))
    add_program(folder, vmm.BINARY)
    disks = copy_images(folder, image_names)
    (folder / "images/programs").mkdir()
    for name in programs:
        if program := images.static_program(tmp, name):
            (folder / "images/programs" / name).write_bytes(program)
    (folder / "nodes").write_text("\n".join(nodes))
    (folder / "run").write_text(f"""#!/bin/sh
export POLDER_VMM=/work/{vmm.BINARY.name} POLDER_IMAGES=/work/images POLDER_KVM=direct POLDER_TIMEOUT_SCALE={TIMEOUT_SCALE}
cd /work/tests/integration
python3 -m pytest -p no:cacheprovider -v --junitxml=/work/results.xml $(cat /work/nodes)
""")
    (folder / "run").chmod(0o755)
    started = time.monotonic()
    status, text, work = boot(tmp, folder, disks, timeout=timeout)
    results = subprocess.run(["/sbin/debugfs", "-R", "cat /results.xml", work], capture_output=True, text=True).stdout
    return parse_results(nodes, results, f"nested host: status {status} after {time.monotonic() - started:.0f} s\n{vmm.tail(output_of(text), 40)}")


def parse_results(nodes, xml, log):
    outcomes = {}
    cases = ElementTree.fromstring(xml).iter("testcase") if xml.strip() else ()
    for case in cases:
        node = f"{case.get('classname').split('.')[-1]}.py::{case.get('name')}"
        bad = next((e for e in case if e.tag in ("failure", "error", "skipped")), None)
        state = {None: "passed", "skipped": "skipped"}.get(bad.tag if bad is not None else None, "failed")
        detail = "" if bad is None else (bad.get("message") if state == "skipped" else bad.text)
        outcomes[node] = Outcome(state, detail or "")
    return {node: outcomes.get(node, Outcome("failed", f"no result\n{log}")) for node in nodes}
