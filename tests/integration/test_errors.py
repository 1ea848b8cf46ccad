"""What cannot work is said in one line that names the thing, with exit status 1 (usage: 2), and leaves nothing."""
import os
import shutil
import subprocess
import tempfile

import pytest

from images import image
from vmm import BINARY


def kernel():
    return image("busybox") / "vmlinuz"


def run(*args, env=None, prefix=(), timeout=60, program=BINARY):
    return subprocess.run([*map(str, prefix), program, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout, env={**os.environ, **(env or {})})


def links():
    return sorted(os.listdir("/sys/class/net"))


def refused(tmp, status, *names, args=(), **kw):
    """polder-vmm ends with `status` and one line on stderr that has each of `names`; files and links stay as they were."""
    before = sorted(tmp.rglob("*")), links()
    done = run(*args, **kw)
    assert done.returncode == status, f"{done.returncode}: {done.stderr}"
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for name in names:
        assert str(name).lower() in done.stderr.lower(), done.stderr
    assert (sorted(tmp.rglob("*")), links()) == before


def test_missing_kernel(tmp):
    refused(tmp, 1, tmp / "no-kernel", "--kernel", args=["--kernel", tmp / "no-kernel"])


def test_no_kernel_given(tmp):
    refused(tmp, 2, "--kernel", args=[])


def test_kernel_is_a_folder(tmp):
    refused(tmp, 1, tmp, args=["--kernel", tmp])


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "header"])
def test_damaged_kernel(tmp, damage):
    whole = kernel().read_bytes()
    broken = {"empty": b"", "text": b"#!/bin/sh\necho hello\n" * 100, "truncated": whole[:len(whole) // 3],
              "header": whole[:0x1F1] + b"\xff" * 64 + whole[0x231:]}[damage]
    path = tmp / "broken-kernel"
    path.write_bytes(broken)
    refused(tmp, 1, path, args=["--kernel", path, "--memory", "256M"])


@pytest.mark.parametrize("option", ["--kernel", "--initrd", "--disk"])
def test_named_pipe(tmp, option):
    """Opening one would wait for its writer."""
    path = tmp / "pipe"
    os.mkfifo(path)
    refused(tmp, 1, path, "regular file", args=["--kernel", kernel(), option, path], timeout=20)


def test_console_pipe_without_a_reader(tmp):
    path = tmp / "pipe"
    os.mkfifo(path)
    refused(tmp, 1, path, "reader", args=["--kernel", kernel(), "--memory", "256M", "--console", f"file={path}"], timeout=20)


def test_kernel_that_may_not_be_read(tmp):
    path = tmp / "secret"
    shutil.copy(kernel(), path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read all files")
    refused(tmp, 1, path, "--kernel", args=["--kernel", path])


def test_missing_initrd(tmp):
    refused(tmp, 1, tmp / "no-initrd", args=["--kernel", kernel(), "--initrd", tmp / "no-initrd"])


def test_initrd_larger_than_memory(tmp):
    path = tmp / "big"
    with open(path, "wb") as file:
        file.truncate(512 << 20)
    refused(tmp, 1, path, args=["--kernel", kernel(), "--initrd", path, "--memory", "256M"])


def test_missing_disk(tmp):
    refused(tmp, 1, tmp / "no-disk", args=["--kernel", kernel(), "--disk", tmp / "no-disk"])


def test_disk_too_small(tmp):
    path = tmp / "tiny"
    path.write_bytes(b"x" * 100)
    refused(tmp, 1, path, args=["--kernel", kernel(), "--disk", path])


@pytest.mark.parametrize("status,options,named", [
    (2, ["--throttle", "iops=5"], "NAME"), (2, ["--throttle", "slow,iops=0"], "'0' is no rate"), (2, ["--throttle", "slow,speed=5"], "speed=5"),
    (2, ["--throttle", "slow,iops=5,iops-burst=5"], "burst"), (1, ["--disk", "DISK,throttle=none"], "--throttle none,iops="),
    (1, ["--disk", "DISK,weight=5"], "throttle="),
    (1, ["--throttle", "slow,iops=5", "--disk", "DISK,throttle=slow,reserve=6"], "reserved")])
def test_throttle(tmp, status, options, named):
    disk = tmp / "disk.raw"
    disk.write_bytes(bytes(4096))
    args = [option.replace("DISK", str(disk)) for option in options]
    refused(tmp, status, named, args=["--kernel", kernel(), *args])


@pytest.mark.parametrize("args", [["--no-such-flag"], ["--cpus"], ["--cpus", "zero"], ["--cpus", "0"], ["--cpus", "1000"],
                                  ["--memory", "lots"], ["--engine", "magic"], ["--engine", "jit,magic=1"],
                                  ["--jit-opt", "no-magic"], ["--net", "carrier-pigeon"], ["--console", "teletype"],
                                  ["--log-level", "shout"], ["stray"]])
def test_usage(tmp, args):
    named = "cpus" if args[-1] in ("zero", "0") else args[-1].split("=")[0].split(",")[-1]
    refused(tmp, 2, named, args=["--kernel", kernel(), *args])


def test_memory_beyond_the_host(tmp):
    refused(tmp, 1, "memory", args=["--kernel", kernel(), "--memory", "64T"])


def test_huge_pages_that_are_not_there(tmp):
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) for line in file if line.startswith("HugePages_Free:"))
    if os.path.exists("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages"):
        with open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages") as file:
            free += int(file.read())
    size = 2 * (free + 64)
    refused(tmp, 1, "huge pages", "vm.nr_hugepages", args=["--kernel", kernel(), "--memory", f"{size}M", "--hugepages"])


@pytest.mark.parametrize("option", ["metrics", "api-sock", "console"])
def test_nothing_half_made(tmp, option):
    """What a machine would have written to, when the last thing that is looked at is wrong."""
    path = f"file={tmp / 'new'}" if option == "console" else tmp / "new"
    refused(tmp, 1, "polder-none", args=["--kernel", kernel(), "--memory", "256M", f"--{option}", path, "--net", "tap=polder-none",
                                         "--vsock", f"cid=3,path={tmp / 'v.sock'}"])


def test_metrics_of_someone_else_stay(tmp):
    path = tmp / "metrics"
    path.write_text("earlier\n")
    refused(tmp, 1, tmp / "no-kernel", args=["--kernel", tmp / "no-kernel", "--metrics", path])
    assert path.read_text().startswith("earlier\n")


def test_engine_kvm_without_dev_kvm(tmp):
    if not os.path.exists("/dev/kvm"):
        return refused(tmp, 1, "/dev/kvm", args=["--kernel", kernel(), "--engine", "kvm"])
    hide = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/kvm && exec "$0" "$@"']
    if subprocess.run([*hide[:-1], "mount --bind /dev/null /dev/kvm"], capture_output=True).returncode:
        pytest.skip("this host has /dev/kvm and does not let it be hidden (no mount namespace)")
    refused(tmp, 1, "/dev/kvm", args=["--kernel", kernel(), "--engine", "kvm"], prefix=hide)


def test_tap_without_permission(tmp):
    if os.getuid():
        return refused(tmp, 1, "polder-none", args=["--kernel", kernel(), "--net", "tap=polder-none"])
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    with tempfile.TemporaryDirectory() as readable:  # the tree and the cache may be root's own
        os.chmod(readable, 0o755)
        program, bzimage = (shutil.copy(file, readable) for file in (BINARY, kernel()))
        if subprocess.run([*as_nobody, "test", "-x", program], capture_output=True).returncode:
            pytest.skip("cannot become another user here")
        refused(tmp, 1, "polder-none", args=["--kernel", bzimage, "--net", "tap=polder-none"], prefix=as_nobody, program=program)


def test_passt_missing(tmp):
    empty = tmp / "bin"
    empty.mkdir()
    refused(tmp, 1, "passt", args=["--kernel", kernel(), "--net", "user"], env={"PATH": str(empty)})


def test_api_socket_path_is_in_use(tmp):
    path = tmp / "api.sock"
    path.write_text("someone's file")
    refused(tmp, 1, path, args=["--kernel", kernel(), "--api-sock", path])
    assert path.read_text() == "someone's file"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot-source": 5}', '{"no-such-key": {}}'])
def test_bad_config_file(tmp, text):
    path = tmp / "vm.json"
    path.write_text(text)
    refused(tmp, 1, path, args=["--config-file", path])


def test_missing_config_file(tmp):
    refused(tmp, 1, tmp / "none.json", args=["--config-file", tmp / "none.json"])


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version(flag):
    done = run(flag)
    assert done.returncode == 0 and done.stdout and not done.stderr
