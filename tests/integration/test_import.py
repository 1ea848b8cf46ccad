"""Images of other products: every kind that qemu-img writes is read as qemu-img reads it; what lies is refused."""
import json
import random
import shutil
import struct
import subprocess
import zlib

import pytest

from images import image
from vmm import TOP

POLDER_IMG = TOP / "build/bin/polder-img"
pytestmark = [pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-utils is not installed")]
MIB = 1 << 20
# format here, in QEMU, options
KINDS = [("vmdk", "vmdk", f"subformat={kind}") for kind in ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse",
                                                         "twoGbMaxExtentFlat", "streamOptimized")] + \
    [("vhd", "vpc", f"subformat={kind},force_size=on") for kind in ("fixed", "dynamic")] + \
    [("vhdx", "vhdx", f"subformat={kind}") for kind in ("dynamic", "fixed")] + \
    [("vhdx", "vhdx", "block_size=1M"), ("vhdx", "vhdx", "block_size=32M")] + \
    [("vdi", "vdi", f"static={switch}") for switch in ("off", "on")]


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


def make_raw(path, size=37 * MIB + 65536, seed=1):
    rng = random.Random(seed)
    with open(path, "wb") as file:
        file.truncate(size)
        for _ in range(40):
            at, length = rng.randrange(size - 70000), rng.randrange(1, 70000)
            file.seek(at)
            file.write(rng.randbytes(length) if rng.random() < 0.5 else (rng.randbytes(97) * (length // 97 + 1))[:length])


def data_runs(extents):
    """What is not zero, neighbours joined."""
    runs = []
    for e in extents:
        if e["zero"] or not e["data"]:
            continue
        if runs and runs[-1][1] == e["start"]:
            runs[-1][1] += e["length"]
        else:
            runs.append([e["start"], e["start"] + e["length"]])
    return runs


@pytest.mark.parametrize("fmt,driver,options", KINDS)
def test_read_as_qemu_reads_it(folder, fmt, driver, options):
    make_raw(folder / "a.raw")
    image = f"disk.{fmt}"
    run("qemu-img", "convert", "-f", "raw", "-O", driver, "-o", options, "a.raw", image)
    assert json.loads(ours("info", "--output=json", image))["format"] == fmt  # by its name and its header
    run("qemu-img", "convert", "-f", driver, "-O", "raw", image, "theirs.raw")
    ours("convert", "-f", fmt, image, "ours.raw")
    theirs = (folder / "theirs.raw").read_bytes()
    assert (folder / "ours.raw").read_bytes() == theirs
    assert theirs[:37 * MIB + 65536] == (folder / "a.raw").read_bytes()
    assert "identical" in ours("compare", "-f", fmt, "-F", "raw", image, "theirs.raw")
    maps = [json.loads(text) for text in (ours("map", "-f", fmt, "--output=json", image),
                                          run("qemu-img", "map", "-f", driver, "--output=json", image))]
    if not any(word in options for word in ("Flat", "fixed", "static=on", "block_size", "dynamic")):  # there QEMU looks for holes in the file, or not into the table
        assert data_runs(maps[0]) == data_runs(maps[1])
    assert sum(e["length"] for e in maps[0]) == len(theirs)
    ours("convert", "-f", fmt, "-O", "qcow2", image, "out.qcow2")
    assert "identical" in ours("compare", "-F", "raw", "out.qcow2", "theirs.raw")


@pytest.mark.parametrize("fmt,driver,options", KINDS)
def test_cut_off(folder, fmt, driver, options):
    """A shorter file is an error, when it is opened or when it is read, unless only what follows the disk is missing."""
    make_raw(folder / "a.raw", 9 * MIB)
    image = folder / f"disk.{fmt}"
    run("qemu-img", "convert", "-f", "raw", "-O", driver, "-o", options, "a.raw", image)
    for path in folder.glob("disk*"):
        whole = path.read_bytes()
        for size in 0, 100, 1000, len(whole) // 3, len(whole) - 100000:
            if 0 <= size < len(whole) - 70000:
                path.write_bytes(whole[:size])
                done = subprocess.run([POLDER_IMG, "convert", "-f", fmt, image, "out.raw"], capture_output=True, timeout=60)
                assert done.returncode == 1 or (done.returncode == 0 and size > MIB and
                                                (folder / "out.raw").read_bytes()[:9 * MIB] == (folder / "a.raw").read_bytes())
        path.write_bytes(whole)


def test_large_and_empty(folder):
    for fmt, driver, size in ("vmdk", "vmdk", "2T"), ("vdi", "vdi", "4T"), ("vhd", "vpc", "2000G"), ("vhdx", "vhdx", "60T"):
        run("qemu-img", "create", "-f", driver, f"d.{fmt}", size)
        assert len(json.loads(ours("map", "--output=json", f"d.{fmt}"))) == 1


def poke(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def refused(image, fmt, says):
    assert says in ours("convert", "-f", fmt, image, "out.raw", status=1)


def test_what_is_not_read_is_named(folder):
    run("qemu-img", "create", "-f", "vmdk", "base.vmdk", "1M")
    run("qemu-img", "create", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "child.vmdk")
    refused("child.vmdk", "vmdk", "with a parent is not read; convert it with qemu-img")
    run("qemu-img", "create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "flat.vmdk", "1M")
    text = (folder / "flat.vmdk").read_text()
    (folder / "esx.vmdk").write_text(text.replace(" FLAT ", " VMFSSPARSE "))
    refused("esx.vmdk", "vmdk", "kind VMFSSPARSE is not read; convert")
    run("qemu-img", "create", "-f", "vdi", "d.vdi", "1M")
    poke("d.vdi", 0x4c, struct.pack("<I", 4))
    refused("d.vdi", "vdi", "differencing")
    assert "only read" in ours("resize", "-f", "vmdk", "base.vmdk", "2M", status=1)
    assert "only read" in ours("convert", "-O", "vmdk", "base.vmdk", "new.vmdk", status=1)
    (folder / "text").write_text("hello" * 1000)
    for fmt in "vmdk", "vhd", "vhdx", "vdi":
        refused("text", fmt, "it has")


def vhd_sum(data):
    return struct.pack(">I", ~(sum(data[:64]) + sum(data[68:])) & 0xffffffff)


def test_differencing_vhd(folder):
    run("qemu-img", "create", "-f", "vpc", "d.vhd", "1M")
    image = bytearray((folder / "d.vhd").read_bytes())
    for at in 0, len(image) - 512:
        image[at + 60:at + 64] = struct.pack(">I", 4)
        image[at + 64:at + 68] = vhd_sum(image[at:at + 512])
    (folder / "d.vhd").write_bytes(image)
    refused("d.vhd", "vhd", "a differencing vhd image is not read")


def test_a_damaged_vhd_footer_has_a_copy(folder):
    make_raw(folder / "a.raw", 3 * MIB)
    run("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", "a.raw", "d.vhd")
    size = (folder / "d.vhd").stat().st_size
    poke("d.vhd", size - 512, bytes(512))
    ours("convert", "-f", "vhd", "d.vhd", "out.raw")
    assert (folder / "out.raw").read_bytes() == (folder / "a.raw").read_bytes()
    poke("d.vhd", 0, bytes(512))
    refused("d.vhd", "vhd", "footer")


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return ~crc & 0xffffffff


def test_a_vhdx_log_that_must_be_replayed(folder):
    run("qemu-img", "create", "-f", "vhdx", "d.vhdx", "1M")
    image = bytearray((folder / "d.vhdx").read_bytes())
    guid = b"a log's own guid"
    for at in 65536, 131072:
        header = image[at:at + 4096]
        header[48:64] = guid
        header[4:8] = bytes(4)
        header[4:8] = struct.pack("<I", crc32c(header))
        image[at:at + 4096] = header
        log_offset = struct.unpack("<Q", header[72:80])[0]
    (folder / "d.vhdx").write_bytes(image)
    ours("convert", "-f", "vhdx", "d.vhdx", "out.raw")  # the log is empty
    image[log_offset + 8192:log_offset + 8196] = b"loge"
    image[log_offset + 8192 + 32:log_offset + 8192 + 48] = guid
    (folder / "d.vhdx").write_bytes(image)
    refused("d.vhdx", "vhdx", "must be replayed")


def test_vmdk_extents_stay_in_the_folder(folder):
    run("qemu-img", "create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "d.vmdk", "1M")
    (folder / "below").mkdir()
    shutil.move("d.vmdk", "below/d.vmdk")
    text = (folder / "below/d.vmdk").read_text()
    for name in "../d-flat.vmdk", str(folder / "d-flat.vmdk"), "/etc/passwd":
        (folder / "below/d.vmdk").write_text(text.replace("d-flat.vmdk", name))
        refused("below/d.vmdk", "vmdk", "outside of its folder")


def test_claims_beyond_bounds(folder):
    run("qemu-img", "create", "-f", "vmdk", "d.vmdk", "10M")
    good = (folder / "d.vmdk").read_bytes()
    for offset, value in ((12, 1 << 63), (12, (1 << 40) - 1), (20, 1 << 63), (20, 3), (56, 1 << 54), (56, (1 << 64) - 2), (28, 1 << 60),
                          (36, 1 << 60)):
        (folder / "d.vmdk").write_bytes(good)
        poke("d.vmdk", offset, struct.pack("<Q", value))
        ours("convert", "-f", "vmdk", "d.vmdk", "out.raw", status=1)
    run("qemu-img", "create", "-f", "vdi", "d.vdi", "10M")
    good = (folder / "d.vdi").read_bytes()
    for offset, form, value in ((0x170, "<Q", 1 << 63), (0x178, "<I", 0), (0x178, "<I", 1 << 31), (0x180, "<I", 1), (0x154, "<I", 0xfffffff0)):
        (folder / "d.vdi").write_bytes(good)
        poke("d.vdi", offset, struct.pack(form, value))
        ours("convert", "-f", "vdi", "d.vdi", "out.raw", status=1)
    (folder / "d.vdi").write_bytes(good)
    poke("d.vdi", 512, struct.pack("<I", 0x7fffffff))  # a block beyond the end
    ours("convert", "-f", "vdi", "d.vdi", "out.raw", status=1)


def test_a_packed_grain_that_is_too_long(folder):
    make_raw(folder / "a.raw", MIB)
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", "a.raw", "d.vmdk")
    image = bytearray((folder / "d.vmdk").read_bytes())
    at = next(i for i in range(65536, len(image), 512) if 0 < struct.unpack("<I", image[i + 8:i + 12])[0] < 70000 and image[i + 12] == 0x78)
    bomb = zlib.compress(bytes(10 * MIB))
    for packed in bomb, b"\xff" * 100:
        image[at + 8:at + 12] = struct.pack("<I", len(packed))
        image[at + 12:at + 12 + len(packed)] = packed
        (folder / "d.vmdk").write_bytes(image)
        ours("convert", "-f", "vmdk", "d.vmdk", "out.raw", status=1)


def test_no_machine_runs_from_them(tmp_path):
    """A guest could write such a header to its raw disk, which then would name files of the host."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", tmp_path / "disk.vmdk", "64M"], check=True)
    done = subprocess.run([TOP / "build/bin/polder-vmm", "--engine", "jit", "--kernel", image("busybox") / "vmlinuz", "--console", "none",
                           "--disk", f"{tmp_path}/disk.vmdk,ro"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "polder-img convert" in done.stderr, done.stderr
