"""polder-img beside qemu-img: images of one read by the other, the same JSON, the same statuses."""
import json
import os
import random
import shutil
import subprocess

import pytest

from vmm import TOP

POLDER_IMG = TOP / "build/bin/polder-img"
pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-utils is not installed")
SETTINGS = ["", "compat=0.10", "cluster_size=512", "cluster_size=2M", "refcount_bits=1", "cluster_size=1k,refcount_bits=64",
            "extended_l2=on", "lazy_refcounts=on", "compression_type=zstd", "data_file=data.raw",
            "data_file=data.raw,data_file_raw=on"]
COMPRESSED = ["", "compression_type=zstd", "cluster_size=512", "cluster_size=2M,refcount_bits=1", "extended_l2=on"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(program, *argv, status=0):
    done = subprocess.run([program, *map(str, argv)], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, f"{argv}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def ours(*argv, status=0):
    return run(POLDER_IMG, *argv, status=status)


def theirs(*argv, status=0):
    return run("qemu-img", *argv, status=status)


def make_raw(path, size=(16 << 20) + 1536, seed=1):
    rng = random.Random(seed)
    data = bytearray(size)
    for _ in range(60):
        at, length = rng.randrange(size - 70000), rng.randrange(1, 70000)
        data[at:at + length] = (rng.randbytes(97) * (length // 97 + 1))[:length]
    path.write_bytes(data)


@pytest.mark.parametrize("options", [s and ["-o", s] for s in SETTINGS] + [["-c"] + (s and ["-o", s] or []) for s in COMPRESSED])
def test_both_read_what_the_other_wrote(folder, options):
    make_raw(folder / "a.raw")
    theirs("convert", "-f", "raw", "-O", "qcow2", *options, "a.raw", "theirs.qcow2")
    ours("check", "theirs.qcow2")
    ours("convert", "-O", "raw", "theirs.qcow2", "back.raw")
    assert (folder / "back.raw").read_bytes() == (folder / "a.raw").read_bytes()
    (folder / "data.raw").unlink(missing_ok=True)
    ours("convert", "-f", "raw", "-O", "qcow2", *options, "a.raw", "ours.qcow2")
    theirs("check", "ours.qcow2")
    theirs("compare", "-f", "raw", "-F", "qcow2", "a.raw", "ours.qcow2")
    ours("compare", "a.raw", "ours.qcow2")


def normal(text):
    return json.loads(text[text.index("[" if text.lstrip().startswith("[") else "{"):])


def test_the_same_json(folder):
    make_raw(folder / "base.raw", 3 << 20)
    theirs("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "disk.qcow2", "8M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 100k 200k", "-c", "write -z 1M 128k", "-c", "write -c -P 4 2M 64k", "disk.qcow2")
    theirs("snapshot", "-c", "one", "disk.qcow2")
    for command in "info", "map", "check":
        assert normal(ours(command, "--output=json", "disk.qcow2")) == normal(theirs(command, "--output=json", "disk.qcow2")), command
    assert normal(ours("map", "--output=json", "base.raw")) == normal(theirs("map", "-f", "raw", "--output=json", "base.raw"))


def test_compare_statuses(folder):
    make_raw(folder / "a.raw", 1 << 20)
    make_raw(folder / "b.raw", 1 << 20, seed=2)
    assert "Content mismatch" in ours("compare", "a.raw", "b.raw", status=1)
    (folder / "longer.raw").write_bytes((folder / "a.raw").read_bytes() + bytes(4096))
    assert "size mismatch" in ours("compare", "a.raw", "longer.raw")
    ours("compare", "-s", "a.raw", "longer.raw", status=1)
    ours("compare", "a.raw", "missing", status=2)


def poke(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_check_finds_and_repairs(folder):
    ours("create", "-f", "qcow2", "-o", "cluster_size=4k", "disk.qcow2", "4M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", "disk.qcow2")
    shutil.copy("disk.qcow2", "leaked.qcow2")
    os.truncate("leaked.qcow2", 31 * 4096)
    poke("leaked.qcow2", 2 * 4096 + 2 * 30, b"\0\1")  # the refcount block is the third cluster
    assert "Leaked cluster 30" in ours("check", "leaked.qcow2", status=3)
    ours("check", "-r", "leaks", "leaked.qcow2")
    theirs("check", "leaked.qcow2")
    poke("disk.qcow2", 2 * 4096 + 2 * 6, bytes(8))
    ours("check", "disk.qcow2", status=2)
    theirs("check", "disk.qcow2", status=2)
    ours("check", "-r", "all", "disk.qcow2")
    theirs("check", "disk.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "read -P 7 0 64k", "disk.qcow2")
    ours("check", "-f", "raw", "disk.qcow2", status=63)
    ours("check", "missing.qcow2", status=1)


def test_resize(folder):
    make_raw(folder / "a.raw", 1 << 20)
    ours("convert", "-O", "qcow2", "-o", "cluster_size=512", "a.raw", "disk.qcow2")
    ours("resize", "disk.qcow2", "+20M")
    theirs("check", "disk.qcow2")
    assert json.loads(theirs("info", "--output=json", "disk.qcow2"))["virtual-size"] == 21 << 20
    ours("compare", "a.raw", "disk.qcow2")
    assert "cannot shrink" in ours("resize", "disk.qcow2", "1M", status=1)
    ours("resize", "a.raw", "2M")
    assert (folder / "a.raw").stat().st_size == 2 << 20


def test_snapshot_table_without_extra_data(folder):
    """Tables of old images are shorter than what is written in their place; only their own clusters are freed."""
    theirs("create", "-f", "qcow2", "-o", "cluster_size=512", "disk.qcow2", "1M")
    for i in range(16):
        theirs("snapshot", "-c", f"s{i}", "disk.qcow2")
    image = bytearray((folder / "disk.qcow2").read_bytes())
    start = int.from_bytes(image[64:72], "big")
    old, new = start, b""
    for _ in range(16):
        id_len, name_len = (int.from_bytes(image[old + at:old + at + 2], "big") for at in (12, 14))
        extra = int.from_bytes(image[old + 36:old + 40], "big")
        text = image[old + 40 + extra:old + 40 + extra + id_len + name_len]
        entry = image[old:old + 36] + bytes(4) + text
        new += bytes(entry) + bytes(-len(entry) % 8)
        old += (40 + extra + len(text) + 7) & ~7
    image[start:old] = new + bytes(old - start - len(new))
    (folder / "disk.qcow2").write_bytes(image)
    ours("check", "-r", "all", "disk.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "disk.qcow2")
    ours("snapshot", "-c", "more", "disk.qcow2")
    ours("check", "disk.qcow2")
    theirs("check", "disk.qcow2")


def test_snapshots(folder):
    make_raw(folder / "a.raw", 4 << 20)
    ours("convert", "-O", "qcow2", "a.raw", "disk.qcow2")
    ours("snapshot", "-c", "first", "disk.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 3M", "disk.qcow2")
    assert "first" in theirs("snapshot", "-l", "disk.qcow2") and "first" in ours("snapshot", "disk.qcow2")
    ours("compare", "a.raw", "disk.qcow2", status=1)
    ours("snapshot", "-a", "first", "disk.qcow2")
    ours("compare", "a.raw", "disk.qcow2")
    ours("snapshot", "-d", "first", "disk.qcow2")
    theirs("check", "disk.qcow2")
    assert "No such" in ours("snapshot", "-d", "first", "disk.qcow2", status=1)


def test_in_use(folder):
    ours("create", "-f", "qcow2", "disk.qcow2", "1M")
    with open("disk.qcow2", "r+b") as file:
        import fcntl
        import struct
        fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_SETLK
        assert "in use" in ours("info", "disk.qcow2", status=1)
        assert "in use" in ours("create", "-f", "qcow2", "disk.qcow2", "1M", status=1)


def test_command_line(folder):
    assert "unknown command" in ours("frobnicate", status=2)
    assert "--size" in ours("info", "--size", "disk", status=2)
    assert "wrong number" in ours("info", status=2)
    assert "not for info" in ours("info", "--compress", "disk", status=2)
    assert "Usage: polder-img convert" in ours("convert", "--help")
    assert ".TH POLDER-IMG" in ours("--man")
