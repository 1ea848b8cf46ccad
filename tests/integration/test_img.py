"""polder-img beside qemu-img: images of one read by the other, the same JSON, the same statuses."""
import json
import os
import random
import shutil
import struct
import subprocess
import time
from pathlib import Path

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


def number(path, offset):
    with open(path, "rb") as file:
        file.seek(offset)
        return int.from_bytes(file.read(8), "big") & 0x00ffffffffffffff


def io(path, *commands):
    return run("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), path)


@pytest.mark.parametrize("check", [ours, theirs])
def test_check_keeps_what_is_below_a_table_that_an_entry_names_as_data(folder, check):
    ours("create", "-f", "qcow2", "-o", "cluster_size=512", "disk.qcow2", "1M")
    io("disk.qcow2", "write -P 1 0 512", "write -P 2 32k 16k")
    l1 = number("disk.qcow2", 40)
    poke("disk.qcow2", number("disk.qcow2", l1) + 8, (1 << 63 | number("disk.qcow2", l1 + 8)).to_bytes(8, "big"))
    check("check", "-r", "all", "disk.qcow2")
    io("disk.qcow2", "write -P 3 64k 64k", "read -P 2 32k 16k")
    theirs("check", "disk.qcow2")


@pytest.mark.parametrize("repair", ["leaks", "all"])
def test_check_keeps_what_is_below_a_table_that_cannot_be_walked(folder, repair):
    ours("create", "-f", "qcow2", "-o", "cluster_size=4k", "disk.qcow2", "8M")
    io("disk.qcow2", "write -P 1 0 4k", "write -P 2 4M 64k")
    entry = number("disk.qcow2", 40) + 16
    place = number("disk.qcow2", entry)
    poke("disk.qcow2", entry, (1 << 63 | place | 512).to_bytes(8, "big"))
    said = ours("check", "-r", repair, "disk.qcow2", status=2)
    assert "does not begin at a cluster" in said and "Leaked clusters stay" in said
    poke("disk.qcow2", entry, (1 << 63 | place).to_bytes(8, "big"))
    io("disk.qcow2", "write -P 3 64k 64k", "read -P 2 4M 64k")
    theirs("check", "disk.qcow2")


def test_check_repairs_counts_beside_a_table_that_cannot_be_walked(folder):
    ours("create", "-f", "qcow2", "-o", "cluster_size=4k", "disk.qcow2", "8M")
    io("disk.qcow2", "write -P 1 0 4k", "write -P 2 4M 64k")
    entry, data = number("disk.qcow2", 40) + 16, number("disk.qcow2", number("disk.qcow2", number("disk.qcow2", 40)))
    place = number("disk.qcow2", entry)
    poke("disk.qcow2", entry, (1 << 63 | place | 512).to_bytes(8, "big"))
    poke("disk.qcow2", 2 * 4096 + 2 * (data // 4096), bytes(2))
    ours("check", "-r", "all", "disk.qcow2", status=2)
    assert "ERROR cluster" not in ours("check", "disk.qcow2", status=2)
    poke("disk.qcow2", entry, (1 << 63 | place).to_bytes(8, "big"))
    io("disk.qcow2", "write -P 3 64k 64k", "read -P 1 0 4k", "read -P 2 4M 64k")
    theirs("check", "disk.qcow2", status=3)  # what the old counts were in


def make_snapshots_of_one_tree(path, snapshots, entries):
    """All snapshots have the same L1 table, and all its entries name the same L2 table."""
    cluster = 65536
    clusters = 64 + entries * 8 // cluster
    entry = struct.pack(">QIHHIIQIIQQ2s6x", 64 * cluster, entries, 1, 1, 0, 0, 0, 0, 16, 0, 1 << 30, b"ab")
    with open(path, "wb") as file:
        file.write(struct.pack(">IIQIIQIIQQIIQ", 0x514649fb, 3, 0, 0, 16, 1 << 30, 0, 2, 3 * cluster, cluster, 1, snapshots, 5 * cluster))
        file.write(struct.pack(">QQQII", 1, 1, 0, 4, 104))  # dirty, lazy refcounts
        for at, data in (1, struct.pack(">Q", 2 * cluster)), (2, b"\0\1" * clusters), (5, entry * snapshots):
            file.seek(at * cluster)
            file.write(data)
        file.seek(64 * cluster)
        file.write(struct.pack(">Q", 4 * cluster) * entries)


def test_check_of_an_image_without_end(folder):
    make_snapshots_of_one_tree("disk.qcow2", 2000, 4 << 20)
    assert "snapshot's L1 table at 0x400000 is used by several" in ours("check", "disk.qcow2", status=2)
    assert "was not closed" in ours("bitmap", "--add", "disk.qcow2", "day", status=1)


def test_check_of_a_disk_whose_tables_are_all_the_same(folder):
    entries = 4 << 20
    ours("create", "-f", "qcow2", "-o", "refcount_bits=32", "disk.qcow2", "1M")
    io("disk.qcow2", "write -P 1 0 64k")
    l2 = number("disk.qcow2", number("disk.qcow2", 40))
    poke("disk.qcow2", 36, entries.to_bytes(4, "big") + (64 << 16).to_bytes(8, "big"))
    poke("disk.qcow2", 64 << 16, struct.pack(">Q", 1 << 63 | l2) * entries)
    ours("check", "disk.qcow2", status=2)
    ours("check", "-r", "all", "disk.qcow2")
    io("disk.qcow2", "read -P 1 0 64k")


def test_resize(folder):
    make_raw(folder / "a.raw", 1 << 20)
    ours("convert", "-O", "qcow2", "-o", "cluster_size=512", "a.raw", "disk.qcow2")
    ours("resize", "disk.qcow2", "+20M")
    theirs("check", "disk.qcow2")
    assert json.loads(theirs("info", "--output=json", "disk.qcow2"))["virtual-size"] == 21 << 20
    ours("compare", "a.raw", "disk.qcow2")
    assert "--shrink" in ours("resize", "disk.qcow2", "1M", status=1)
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
    assert "no snapshot of this name" in ours("snapshot", "-d", "first", "disk.qcow2", status=1)


def theirs_held(form, writes):
    return subprocess.Popen(["qemu-io", "-f", form, *([] if writes else ["-r"]), f"disk.{form}"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)


def ours_held(form, writes):
    return subprocess.Popen([POLDER_IMG, "serve", "-f", form, *([] if writes else ["--read-only"]), "--socket", f"{form}.sock",
                             f"disk.{form}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("held", [ours_held, theirs_held])
@pytest.mark.parametrize("writes", [False, True])
def test_in_use(folder, form, held, writes):
    """One writer or many readers, of ours and of QEMU's."""
    ours("create", "-f", form, f"disk.{form}", "1M")
    status, refused = (1, "in use") if writes else (0, "")
    with held(form, writes) as holder:
        deadline = time.monotonic() + 30
        while "OFDLCK" not in (locks := Path("/proc/locks").read_text()) or f":{os.stat(f'disk.{form}').st_ino} " not in locks:
            assert time.monotonic() < deadline and holder.poll() is None
            time.sleep(0.01)
        assert refused in ours("map", "-f", form, f"disk.{form}", status=status)
        assert "in use" in ours("resize", "-f", form, f"disk.{form}", "2M", status=1)
        assert "in use" in ours("create", "-f", form, f"disk.{form}", "1M", status=1)
        if held is ours_held:
            text = run("qemu-io", "-r", "-f", form, "-c", "read 0 512", f"disk.{form}", status=status)
            assert ("lock" in text) == writes, text
            assert "lock" in theirs("resize", "-f", form, f"disk.{form}", "2M", status=1)
        holder.terminate()
    ours("resize", "-f", form, f"disk.{form}", "2M")


def test_command_line(folder):
    assert "unknown command" in ours("frobnicate", status=2)
    assert "--size" in ours("info", "--size", "disk", status=2)
    assert "wrong number" in ours("info", status=2)
    assert "not for info" in ours("info", "--compress", "disk", status=2)
    shown = ours("convert", "--help")
    assert "Usage: polder-img convert" in shown and "--compress" in shown and "--socket" not in shown
    assert ".TH POLDER-IMG" in ours("--man")


def bitmaps(image):
    """What a qcow2 file's directory of bitmaps says, read by hand: {name: (flags, granularity, dirty granules)}."""
    data = image.read_bytes()
    cluster, at = 1 << int.from_bytes(data[20:24], "big"), int.from_bytes(data[100:104], "big")
    found = {}
    while (kind := int.from_bytes(data[at:at + 4], "big")) not in (0, 0x23852875):
        at += 8 + (int.from_bytes(data[at + 4:at + 8], "big") + 7) // 8 * 8
    if kind == 0 or not data[95] & 1:
        return found
    count, entry = int.from_bytes(data[at + 8:at + 12], "big"), int.from_bytes(data[at + 24:at + 32], "big")
    for _ in range(count):
        table, entries, flags = (int.from_bytes(data[entry + a:entry + b], "big") for a, b in ((0, 8), (8, 12), (12, 16)))
        name_len, extra = int.from_bytes(data[entry + 18:entry + 20], "big"), int.from_bytes(data[entry + 20:entry + 24], "big")
        name = data[entry + 24 + extra:entry + 24 + extra + name_len].decode()
        bits = b""
        for i in range(entries):
            place = int.from_bytes(data[table + 8 * i:table + 8 * i + 8], "big")
            bits += data[place:place + cluster] if place > 1 else bytes([255 * place]) * cluster
        dirty = {8 * i + j for i, byte in enumerate(bits) if byte for j in range(8) if byte >> j & 1}
        found[name] = flags, 1 << data[entry + 17], dirty
        entry += (24 + extra + name_len + 7) // 8 * 8
    return found


def test_bitmaps_are_the_same(folder):
    """The same steps by both, over images that the other one made: the same bitmaps, which both then check."""
    steps = [("--add", "-g", "4k", "a"), ("--add", "--disable", "off"), ("--add", "b"), ("--enable", "off"), ("--disable", "a"),
             ("--add", "-g", "128k", "c"), ("--merge", "b", "c"), ("--merge", "c", "a"), ("--clear", "b"), ("--remove", "off")]
    theirs("create", "-f", "qcow2", "-o", "cluster_size=4k", "ours.qcow2", "40M")
    ours("create", "-f", "qcow2", "-o", "cluster_size=4k", "theirs.qcow2", "40M")
    for number, step in enumerate(steps):
        name, actions = step[-1], step[:-1]
        ours("bitmap", *actions, "ours.qcow2", name)
        theirs("bitmap", *actions, "theirs.qcow2", name)
        for mine in "ours.qcow2", "theirs.qcow2":
            run("qemu-io", "-f", "qcow2", "-c", f"write -P {number + 1} {number}M 123k", "-c", f"discard {number + 20}M 1M", mine)
        assert bitmaps(folder / "ours.qcow2") == bitmaps(folder / "theirs.qcow2")
        for mine in "ours.qcow2", "theirs.qcow2":
            ours("check", mine)
            theirs("check", mine)
    assert len(bitmaps(folder / "ours.qcow2")["a"][2]) > 100
    ours("resize", "ours.qcow2", "400M")
    theirs("resize", "theirs.qcow2", "400M")
    grown = bitmaps(folder / "ours.qcow2")
    for name, (flags, granularity, dirty) in bitmaps(folder / "theirs.qcow2").items():
        new = set(range((40 << 20) // granularity, (400 << 20) // granularity)) if flags & 2 else set()
        assert grown[name] == (flags, granularity, dirty | new)  # ours takes what is new as changed
    theirs("check", "ours.qcow2")
    normal_info = [normal(theirs("info", "--output=json", name))["format-specific"] for name in ("ours.qcow2", "theirs.qcow2")]
    assert normal_info[0] == normal_info[1]
    assert normal(ours("info", "--output=json", "ours.qcow2"))["format-specific"] == normal_info[0]


def test_bitmaps_of_another_image_merge(folder):
    ours("create", "-f", "qcow2", "base.qcow2", "10M")
    ours("bitmap", "--add", "base.qcow2", "day")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 64k", "base.qcow2")
    ours("create", "-f", "qcow2", "top.qcow2", "10M")
    ours("bitmap", "--add", "--merge", "day", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "week")
    assert bitmaps(folder / "top.qcow2")["week"][2] == {16}
    theirs("bitmap", "--merge", "week", "base.qcow2", "day", "-b", "top.qcow2", "-F", "qcow2")
    assert "there is none" in ours("bitmap", "--merge", "nix", "base.qcow2", "day", status=1)


def test_a_disk_does_not_outgrow_its_bitmaps(folder):
    ours("create", "-f", "qcow2", "disk.qcow2", "200G")
    ours("bitmap", "--add", "-g", "512", "disk.qcow2", "day")
    assert "too large" in ours("resize", "disk.qcow2", "300G", status=1)
    info = json.loads(theirs("info", "--output=json", "disk.qcow2"))
    assert info["virtual-size"] == 200 << 30 and info["format-specific"]["data"]["bitmaps"][0]["flags"] == ["auto"]
    theirs("check", "disk.qcow2")


@pytest.mark.parametrize("size", ["100k", "192k"])
def test_a_bitmap_records_what_a_shrunk_disk_loses(folder, size):
    ours("create", "-f", "qcow2", "disk.qcow2", "192k")
    io("disk.qcow2", "write -P 1 0 192k")
    ours("bitmap", "--add", "disk.qcow2", "day")
    ours("resize", "--shrink", "disk.qcow2", "70k")
    ours("resize", "disk.qcow2", size)
    assert bitmaps(folder / "disk.qcow2")["day"][2] == {1, 2} - {2 if size == "100k" else 0}
    io("disk.qcow2", f"read -P 0 70k {int(size[:-1]) - 70}k")


def test_a_bitmap_left_in_use_can_only_be_removed(folder):
    ours("create", "-f", "qcow2", "disk.qcow2", "10M")
    ours("bitmap", "--add", "disk.qcow2", "day")
    data = (folder / "disk.qcow2").read_bytes()
    poke("disk.qcow2", int.from_bytes(data[136:144], "big") + 15, b"\3")  # flags: auto, in use
    assert normal(ours("info", "--output=json", "disk.qcow2"))["format-specific"]["data"]["bitmaps"][0]["flags"] == ["in-use", "auto"]
    assert "only be removed" in ours("bitmap", "--clear", "disk.qcow2", "day", status=1)
    ours("resize", "disk.qcow2", "11M")
    assert bitmaps(folder / "disk.qcow2")["day"][0] == 3
    ours("bitmap", "--remove", "disk.qcow2", "day")
    assert not bitmaps(folder / "disk.qcow2")
    theirs("check", "disk.qcow2")


def test_bitmap_errors(folder):
    ours("create", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "1M")
    ours("create", "disk.raw", "1M")
    ours("create", "-f", "qcow2", "disk.qcow2", "1M")
    assert "version 2" in ours("bitmap", "--add", "old.qcow2", "day", status=1)
    assert "is raw" in ours("bitmap", "--add", "disk.raw", "day", status=1)
    assert "power of two" in ours("bitmap", "--add", "-g", "5000", "disk.qcow2", "day", status=1)
    assert "say what to do" in ours("bitmap", "disk.qcow2", "day", status=1)
    assert "no bitmap 'day'" in ours("bitmap", "--remove", "disk.qcow2", "day", status=1)
    ours("bitmap", "--add", "disk.qcow2", "day")
    assert "already" in ours("bitmap", "--add", "disk.qcow2", "day", status=1)
    poke("disk.qcow2", 142, b"\xff")  # the directory lies beyond the end of the file
    assert "damaged" in ours("check", "disk.qcow2", status=2)
    ours("bitmap", "--add", "disk.qcow2", "week")
    assert list(bitmaps(folder / "disk.qcow2")) == ["week"]
    ours("check", "-r", "all", "disk.qcow2")
    theirs("check", "disk.qcow2")


CHAIN_SETTINGS = ["", "compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "data_file={}.data"]


def make_chain(folder, settings, bottom="raw"):
    """base <- middle <- top, of different sizes, each with some data, some zeroes and some holes."""
    rng = random.Random(settings)
    make_raw(folder / "base.raw", 3 << 20)
    if bottom != "raw":
        theirs("convert", "-f", "raw", "-O", bottom, "base.raw", f"base.{bottom}")
    for name, below, kind, size in ("middle", f"base.{bottom}", bottom, 5 << 20), ("top", "middle.qcow2", "qcow2", (4 << 20) + 512):
        option = ["-o", settings.format(name)] if settings else []
        theirs("create", "-f", "qcow2", *option, "-b", below, "-F", kind, f"{name}.qcow2", size)
        commands = []
        for _ in range(20):
            offset, length = rng.randrange(size // 512 - 300) * 512, rng.randrange(1, 300) * 512
            commands += ["-c", f"write {rng.choice(['-z', f'-P {rng.randrange(1, 255)}'])} {offset} {length}"]
        run("qemu-io", "-f", "qcow2", *commands, f"{name}.qcow2")
    ours("convert", "-O", "raw", "top.qcow2", "before.raw")


def reads_the_same(folder, image="top.qcow2", kind="qcow2"):
    theirs("compare", "-q", "-f", "raw", "-F", kind, "before.raw", image)
    ours("compare", "-f", "raw", "-F", kind, "before.raw", image)
    if kind == "qcow2":
        theirs("check", image)
        ours("check", image)


@pytest.mark.parametrize("settings", CHAIN_SETTINGS)
def test_commit(folder, settings):
    make_chain(folder, settings)
    empty = json.loads(theirs("map", "--output=json", "top.qcow2"))
    assert any(extent["depth"] == 0 for extent in empty)
    ours("commit", "top.qcow2")
    assert all(extent["depth"] > 0 or not extent["present"] for extent in json.loads(theirs("map", "--output=json", "top.qcow2")))
    reads_the_same(folder)
    theirs("check", "middle.qcow2")
    ours("check", "middle.qcow2")


@pytest.mark.parametrize("bottom", ["raw", "qcow2"])
def test_commit_further_down(folder, bottom):
    make_chain(folder, "", bottom)
    ours("commit", "-b", f"base.{bottom}", "top.qcow2")
    reads_the_same(folder, "top.qcow2")
    theirs("compare", "-q", "-f", "raw", "-F", bottom, "before.raw", f"base.{bottom}")
    assert "not in the backing chain" in ours("commit", "-b", "before.raw", "top.qcow2", status=1)
    assert "no backing file" in ours("commit", "before.raw", status=1)


def test_commit_further_down_than_a_shorter_image(folder):
    """Where the image between ends, the top one reads as zeroes: so must the base."""
    ours("create", "-f", "qcow2", "base.qcow2", "8M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 8M", "base.qcow2")
    theirs("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "middle.qcow2", "4M")
    theirs("create", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2", "8M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 6 1M 1M", "-c", "write -P 7 5M 1M", "top.qcow2")
    maps = [[{key: extent[key] for key in ("start", "length", "depth", "present", "zero", "data")}
             for extent in json.loads(tool("map", "--output=json", "top.qcow2"))] for tool in (ours, theirs)]
    assert maps[0] == maps[1]
    theirs("convert", "-O", "raw", "top.qcow2", "before.raw")
    ours("commit", "-b", "base.qcow2", "top.qcow2")
    theirs("compare", "-q", "-f", "raw", "-F", "qcow2", "before.raw", "base.qcow2")


def test_commit_without_emptying(folder):
    make_chain(folder, "")
    ours("commit", "-d", "top.qcow2")
    assert any(extent["depth"] == 0 for extent in json.loads(theirs("map", "--output=json", "top.qcow2")))
    reads_the_same(folder)


@pytest.mark.parametrize("command", [["commit"], ["commit", "-d"], ["rebase", "-b", ""],
                                     ["rebase", "-b", "other.raw", "-F", "raw"]])
def test_what_would_change_a_snapshot_is_refused(folder, command):
    make_chain(folder, "")
    make_raw(folder / "other.raw", 4 << 20, seed=9)
    ours("snapshot", "-c", "one", "top.qcow2")
    ours("snapshot", "-c", "two", "top.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 77 1M 1M", "top.qcow2")
    files = {name: (folder / name).read_bytes() for name in ("base.raw", "middle.qcow2", "top.qcow2")}
    said = ours(*command, "top.qcow2", status=1)
    assert "has the snapshot 'one'" in said and "delete its snapshots first" in said and said.count("\n") == 1
    assert files == {name: (folder / name).read_bytes() for name in files}
    ours("snapshot", "-a", "one", "top.qcow2")
    reads_the_same(folder)
    for name in ("one", "two"):
        ours("snapshot", "-d", name, "top.qcow2")
    ours(*command, "top.qcow2")
    reads_the_same(folder)


def test_commit_beyond_an_image_with_a_snapshot(folder):
    make_chain(folder, "", "qcow2")
    ours("snapshot", "-c", "between", "middle.qcow2")
    assert "middle.qcow2' has the snapshot 'between'" in ours("commit", "-b", "base.qcow2", "top.qcow2", status=1)
    theirs("convert", "-f", "qcow2", "-O", "raw", "-l", "between", "middle.qcow2", "between.raw")
    ours("commit", "top.qcow2")  # to middle, which keeps what its snapshot reads
    reads_the_same(folder)
    theirs("convert", "-f", "qcow2", "-O", "raw", "-l", "between", "middle.qcow2", "again.raw")
    assert (folder / "between.raw").read_bytes() == (folder / "again.raw").read_bytes()
    ours("rebase", "-u", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2")
    ours("rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", "middle.qcow2")
    reads_the_same(folder)


@pytest.mark.parametrize("settings", CHAIN_SETTINGS)
def test_rebase(folder, settings):
    make_chain(folder, settings)
    make_raw(folder / "other.raw", 4 << 20, seed=9)  # has data where the chain has nothing
    ours("rebase", "-b", "base.raw", "-F", "raw", "top.qcow2")
    reads_the_same(folder)
    ours("rebase", "-b", "other.raw", "-F", "raw", "top.qcow2")
    assert json.loads(theirs("info", "--output=json", "top.qcow2"))["backing-filename"] == "other.raw"
    reads_the_same(folder)
    ours("rebase", "-b", "", "top.qcow2")
    assert "backing-filename" not in json.loads(theirs("info", "--output=json", "top.qcow2"))
    reads_the_same(folder)
    ours("rebase", "-b", "other.raw", "-F", "raw", "top.qcow2")
    reads_the_same(folder)


def test_rebase_of_the_name_only(folder):
    make_chain(folder, "")
    os.rename("middle.qcow2", "a-much-longer-name-than-before.qcow2")
    assert "No such file" in ours("info", "--output=json", "middle.qcow2", status=1)
    ours("bitmap", "--add", "a-much-longer-name-than-before.qcow2", "day")
    ours("rebase", "-u", "-b", "a-much-longer-name-than-before.qcow2", "-F", "qcow2", "top.qcow2")
    reads_the_same(folder)
    assert "state the backing file's format" in ours("rebase", "-b", "base.raw", "top.qcow2", status=1)
    assert "No such file" in ours("rebase", "-b", "missing", "-F", "raw", "top.qcow2", status=1)


@pytest.mark.parametrize("settings", CHAIN_SETTINGS)
def test_shrink_and_grow(folder, settings):
    make_chain(folder, settings)
    before = (folder / "before.raw").read_bytes()
    size = (1 << 20) + 1536
    ours("resize", "--shrink", "top.qcow2", size)
    (folder / "before.raw").write_bytes(before[:size])
    reads_the_same(folder)
    ours("resize", "top.qcow2", "+2M")
    (folder / "before.raw").write_bytes(before[:size] + bytes(2 << 20))
    reads_the_same(folder)
    ours("resize", "--shrink", "top.qcow2", "-1M")
    assert json.loads(theirs("info", "--output=json", "top.qcow2"))["virtual-size"] == size + (1 << 20)


@pytest.mark.parametrize("settings", ["", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "data_file=a.data"])
@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_preallocation(folder, settings, mode):
    ours("create", "-f", "qcow2", "-o", ",".join(filter(None, [settings, f"preallocation={mode}"])), "disk.qcow2", (5 << 20) + 512)
    theirs("check", "disk.qcow2")
    ours("check", "disk.qcow2")
    extents = json.loads(theirs("map", "--output=json", "disk.qcow2"))
    assert all(extent["depth"] == 0 and extent["present"] and "offset" in extent for extent in extents)
    store = folder / ("a.data" if "data_file" in settings else "disk.qcow2")
    assert (store.stat().st_blocks * 512 > 5 << 20) == (mode != "metadata") or "2M" in settings
    size = store.stat().st_size
    run("qemu-io", "-f", "qcow2", "-c", "read -P 0 0 5M", "-c", "write -P 5 100k 3M", "disk.qcow2")
    assert store.stat().st_size == size


def test_preallocation_of_raw_images(folder):
    for mode in "falloc", "full":
        ours("create", "-o", f"preallocation={mode}", "disk.raw", "3M")
        assert (folder / "disk.raw").stat().st_blocks * 512 == (folder / "disk.raw").stat().st_size == 3 << 20
    assert "no metadata" in ours("create", "-o", "preallocation=metadata", "disk.raw", "3M", status=1)
    assert "no setting" in ours("create", "-o", "cluster_size=4k", "disk.raw", "3M", status=1)
    make_raw(folder / "a.raw")
    ours("convert", "-O", "qcow2", "-o", "preallocation=falloc", "a.raw", "disk.qcow2")
    theirs("compare", "-f", "raw", "-F", "qcow2", "a.raw", "disk.qcow2")
    assert "exclude" in ours("create", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "-o", "preallocation=full", "b.qcow2", status=1)


def test_backups(folder):
    """A week of a disk's life; each day's backup restores what that day had."""
    rng = random.Random(5)
    (folder / "backups").mkdir()
    make_raw(folder / "a.raw", 9 << 20)
    ours("convert", "-O", "qcow2", "a.raw", "disk.qcow2")
    assert "--full --bitmap day" in ours("backup", "--bitmap", "day", "-b", "0.qcow2", "disk.qcow2", "backups/1.qcow2", status=1)
    for day in range(6):
        commands = []
        for _ in range(8):
            command = rng.choice(["write -z", "discard", f"write -P {rng.randrange(256)}"])
            commands += ["-c", f"{command} {rng.randrange(16000) * 512} {rng.randrange(1, 300) * 512}"]
        run("qemu-io", "-f", "qcow2", "-d", "unmap", *commands, "disk.qcow2")
        if day == 2:
            ours("resize", "disk.qcow2", "12M")
        if day == 4:
            ours("resize", "--shrink", "disk.qcow2", "5M")
            ours("resize", "disk.qcow2", "9M")
        how = ["--bitmap", "day", "-b", f"{day - 1}.qcow2"] if day else ["--full", "--bitmap", "day"]
        ours("backup", *how, "disk.qcow2", f"backups/{day}.qcow2")
        ours("convert", "-O", "raw", "disk.qcow2", f"{day}.raw")
    for day in range(6):
        ours("convert", "-O", "raw", f"backups/{day}.qcow2", "restored.raw")
        assert (folder / "restored.raw").read_bytes() == (folder / f"{day}.raw").read_bytes(), day
        theirs("compare", "-q", "-f", "qcow2", "-F", "raw", f"backups/{day}.qcow2", f"{day}.raw")
    assert (folder / "backups/1.qcow2").stat().st_size < (folder / "backups/0.qcow2").stat().st_size
    assert "already" in ours("backup", "--full", "disk.qcow2", "backups/0.qcow2", status=1)
    ours("backup", "--full", "-c", "a.raw", "raw.qcow2")
    theirs("compare", "-q", "-f", "qcow2", "-F", "raw", "raw.qcow2", "a.raw")


def test_an_interrupted_backup_loses_nothing(folder):
    ours("create", "-f", "qcow2", "disk.qcow2", "10M")
    ours("backup", "--full", "--bitmap", "day", "disk.qcow2", "0.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 1M", "disk.qcow2")
    (folder / "1.qcow2.partial").mkdir()
    ours("backup", "--bitmap", "day", "-b", "0.qcow2", "disk.qcow2", "1.qcow2", status=1)
    (folder / "1.qcow2.partial").rmdir()
    ours("backup", "--bitmap", "day", "-b", "0.qcow2", "disk.qcow2", "1.qcow2")
    theirs("compare", "-q", "-f", "qcow2", "-F", "qcow2", "1.qcow2", "disk.qcow2")


def kill_at_random(rng, *argv):
    """Runs polder-img and kills it after a moment; true when it was done before that."""
    with subprocess.Popen([POLDER_IMG, *map(str, argv)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            return process.wait(timeout=rng.random() * 0.06) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            return False


def at_worst_leaks(name):
    for _ in range(100):  # the kernel may close a killed process's ring, and what it locked, a moment later
        if "in use" not in subprocess.run([POLDER_IMG, "info", name], capture_output=True, text=True, timeout=120).stderr:
            break
        time.sleep(0.05)
    for program in POLDER_IMG, "qemu-img":
        done = subprocess.run([program, "check", "-f", "qcow2", name], capture_output=True, text=True, timeout=120)
        assert done.returncode in (0, 3), f"{program} check {name}: {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("command", [["commit"], ["rebase", "-b", ""], ["rebase", "-b", "other.raw", "-F", "raw"]])
def test_killed_while_it_works(folder, command):
    """Whenever commit or rebase is killed, the image reads as before, and so it does when the work is done at last."""
    rng = random.Random(str(command))
    make_chain(folder, "cluster_size=4k")
    make_raw(folder / "other.raw", 4 << 20, seed=3)
    for _ in range(12):
        done = kill_at_random(rng, *command, "top.qcow2")
        at_worst_leaks("top.qcow2")
        at_worst_leaks("middle.qcow2")
        ours("compare", "-f", "raw", "-F", "qcow2", "before.raw", "top.qcow2")
        if done:
            break
    ours("check", "-r", "all", "middle.qcow2")
    ours("check", "-r", "all", "top.qcow2")
    ours(*command, "top.qcow2")
    reads_the_same(folder)


def test_a_file_cut_off_under_us(folder):
    """The host's file becomes shorter than the image's tables say: an error or zeroes, and nothing worse."""
    make_raw(folder / "a.raw")
    ours("convert", "-O", "qcow2", "a.raw", "disk.qcow2")
    size = (folder / "disk.qcow2").stat().st_size
    os.truncate("disk.qcow2", size // 2)
    assert "beyond the end" in ours("check", "disk.qcow2", status=2)
    os.truncate("disk.qcow2", 70000)
    assert "beyond the end of the file" in ours("info", "disk.qcow2", status=1)


def test_bench_reads_change_nothing_and_writes_are_all_there(folder):
    make_raw(folder / "a.raw", 4 << 20)
    before = (folder / "a.raw").read_bytes()
    done = json.loads(ours("bench", "-f", "raw", "-c", 3000, "-d", 7, "--random", "--output", "json", "a.raw"))
    assert (folder / "a.raw").read_bytes() == before
    assert (done["count"], done["depth"], done["bytes"], done["operation"]) == (3000, 7, 4096, "read")
    assert abs(done["iops"] * done["seconds"] / 3000 - 1) < 0.01
    assert 0 < done["latency-us"]["p50"] <= done["latency-us"]["p99"] <= done["latency-us"]["max"]
    theirs("create", "-f", "qcow2", "b.qcow2", "64M")
    ours("bench", "-w", "-c", 100, "-o", "1M", "-S", "128k", "-s", "64k", "--flush-interval", 10, "b.qcow2")
    theirs("check", "b.qcow2")
    data = [extent for extent in json.loads(theirs("map", "--output=json", "b.qcow2")) if extent["data"]]
    assert sum(extent["length"] for extent in data) == 100 * 65536
    assert data[0]["start"] == 1 << 20 and len(data) == 100


@pytest.mark.parametrize("kind", ["null", "memory"])
def test_bench_without_a_file(folder, kind):
    assert "2000 writes of 512 bytes" in ours("bench", "-f", kind, "-w", "-c", 2000, "-s", 512, "1G")
    assert "no size" in ours("bench", "-f", kind, "a.raw", status=1)


@pytest.mark.parametrize("options", [["-s", 100], ["-s", "2M"], ["-o", "1M"], ["-c", 0], ["-d", 2000], ["-t", "fast"]])
def test_bench_says_what_cannot_be(folder, options):
    (folder / "a.raw").write_bytes(bytes(1 << 20))
    assert len(ours("bench", "-f", "raw", *options, "a.raw", status=1).splitlines()) == 1
