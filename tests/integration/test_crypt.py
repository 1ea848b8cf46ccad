"""Encrypted images: ours beside qemu-img's and cryptsetup's, wrong keys, damaged and hostile headers, guests on them."""
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess

import pytest

from api_client import Client
from guests import CMDLINE, busybox, debian, finish
from images import disk_copy, image, initramfs
from vmm import TOP, Vmm

POLDER_IMG = TOP / "build/bin/polder-img"
pytestmark = [pytest.mark.skipif(not shutil.which("qemu-img") or not shutil.which("cryptsetup"),
                                 reason="qemu-utils or cryptsetup-bin is not installed"),
              pytest.mark.not_nested("both engines have the same block layer and ciphers; test_disk_live.py runs the former on KVM")]
KEY = b"a key of some length"
MIB = 1 << 20


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "wrong").write_bytes(KEY + b"\n")
    return tmp_path


def run(program, *argv, status=0, **keywords):
    done = subprocess.run([program, *map(str, argv)], capture_output=True, **{"timeout": 240, **keywords})
    text = (done.stdout + done.stderr).decode()
    assert done.returncode == status, f"{argv}: status {done.returncode}\n{text}"
    return text


def img(*argv, status=0, **keywords):
    return run(POLDER_IMG, *argv, status=status, **keywords)


def qemu(command, *argv, tries=5):
    """qemu-img, which knows the key as s. On a busy host its timing of PBKDF2 for a new key may fail: it is tried again."""
    try:
        return run("qemu-img", command, "--object", "secret,id=s,file=key", *argv)
    except AssertionError as failed:
        if tries == 1 or "Unable to get accurate CPU usage" not in str(failed):
            raise
        return qemu(command, *argv, tries=tries - 1)


def opened_luks(path):
    return ["--image-opts", f"driver=luks,key-secret=s,file.filename={path}"]


def opened_qcow2(path):
    return ["--image-opts", f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename={path}"]


def noise(path, size, seed=1):
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def decrypt(image_bytes, key, size):
    """The payload of a LUKS2 image, by libraries that share nothing with ours but OpenSSL's AES."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    header = json.loads(image_bytes[4096:16384].split(b"\0")[0])
    segment = header["segments"]["0"]
    offset, sector = int(segment["offset"]), segment["sector_size"]
    out = bytearray()
    for at in range(0, size, sector):
        context = Cipher(algorithms.AES(key), modes.XTS(struct.pack("<QQ", at // 512, 0))).decryptor()
        out += context.update(image_bytes[offset + at:offset + at + sector]) + context.finalize()
    return bytes(out)


def volume_key(path):
    return run("cryptsetup", "luksDump", "--dump-volume-key", "--batch-mode", "--key-file", "key", "--volume-key-file", "volume.key",
               path) and (path.parent / "volume.key").read_bytes()


@pytest.mark.parametrize("settings", ["", "sector_size=4096", "sector_size=1024,key_bits=256"])
def test_luks2_of_ours(folder, settings):
    raw = noise(folder / "a.raw", 3 * MIB)
    img("convert", "-f", "raw", "-O", "luks", *(["-o", settings] if settings else []), "--target-key", "key", raw, "a.luks")
    run("cryptsetup", "open", "--test-passphrase", "--key-file", "key", "a.luks")
    assert "LUKS" in run("cryptsetup", "luksDump", "a.luks")
    assert decrypt((folder / "a.luks").read_bytes(), volume_key(folder / "a.luks"), 3 * MIB) == raw.read_bytes()
    assert "identical" in img("compare", "--key", "key", "a.luks", raw)


def cryptsetup_format(path, *options):
    with open(path, "wb") as file:
        file.truncate(24 * MIB)
    run("cryptsetup", "luksFormat", "--batch-mode", "--key-file", "key", "--pbkdf-memory", "32768", "--iter-time", "10", *options, path)


@pytest.mark.parametrize("options", [["--type", "luks2"], ["--type", "luks2", "--sector-size", "4096", "--pbkdf", "pbkdf2"],
                                     ["--type", "luks2", "--key-size", "256", "--offset", "40960"]])
def test_luks2_of_cryptsetup(folder, options):
    disk = folder / "c.luks"
    cryptsetup_format(disk, *options)
    size = json.loads(img("info", "--output=json", disk))["virtual-size"]
    assert 0 < size < 24 * MIB
    subprocess.run([TOP / "build/tests/diff/qcow2_io", "luks", disk, "4", "sync", "key=key"], check=True, timeout=60,
                   input=b"w 0 1048576 7\nw 1048576 65536 9\nf 0 0 0\nr 4096 8192 7\n")
    plain = decrypt(disk.read_bytes(), volume_key(disk), 1048576 + 65536)
    assert plain == b"\7" * 1048576 + b"\t" * 65536


def test_luks1_both_ways(folder):
    raw = noise(folder / "a.raw", 5 * MIB + 512)
    img("convert", "-f", "raw", "-O", "luks", "-o", "version=1,iterations=2000", "--target-key", "key", raw, "ours.luks")
    qemu("convert", "-O", "raw", *opened_luks("ours.luks"), "back.raw")
    assert (folder / "back.raw").read_bytes() == raw.read_bytes()
    qemu("convert", "-f", "raw", "-O", "luks", "-o", "key-secret=s,iter-time=10", raw, "theirs.luks")
    img("convert", "--key", "key", "theirs.luks", "back2.raw")
    assert (folder / "back2.raw").read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_preallocated_qcow2_reads_as_zeroes(folder, mode):
    (folder / "raw").write_bytes(bytes(3 * MIB))
    img("convert", "-f", "raw", "-O", "qcow2", "-o", f"encrypt.format=luks,encrypt.iterations=2000,preallocation={mode}",
        "--target-key", "key", "raw", "a.qcow2")
    assert "identical" in img("compare", "--key", "key", "a.qcow2", "raw")


def test_qcow2_both_ways(folder):
    raw = noise(folder / "a.raw", 5 * MIB + 512)
    img("convert", "-f", "raw", "-O", "qcow2", "-o", "encrypt.format=luks,encrypt.iterations=2000", "--target-key", "key", raw, "ours.qcow2")
    qemu("check", *opened_qcow2("ours.qcow2"))
    qemu("convert", "-O", "raw", *opened_qcow2("ours.qcow2"), "back.raw")
    assert (folder / "back.raw").read_bytes() == raw.read_bytes()
    assert raw.read_bytes()[:65536] not in (folder / "ours.qcow2").read_bytes()
    theirs = json.loads(img("info", "--output=json", "ours.qcow2"))
    assert theirs["encrypted"] and theirs["format-specific"]["data"]["encrypt"]["cipher-alg"] == "aes-256"
    qemu("convert", "-f", "raw", "-O", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", raw, "theirs.qcow2")
    img("check", "theirs.qcow2")
    assert "identical" in img("compare", "--key", "key", "theirs.qcow2", raw)
    assert "not compressed" in img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "encrypt.format=luks", "--target-key", "key", raw,
                                   "c.qcow2", status=1)


def test_the_old_aes_method_is_read(folder):
    raw = noise(folder / "a.raw", 2 * MIB)
    for key in KEY, b"short":
        (folder / "key").write_bytes(key)
        qemu("convert", "-f", "raw", "-O", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=s", raw, "aes.qcow2")
        img("convert", "--key", "key", "aes.qcow2", "back.raw")
        assert (folder / "back.raw").read_bytes() == raw.read_bytes()
    assert "only read" in img("resize", "--key", "key", "aes.qcow2", "4M", status=1)


@pytest.mark.parametrize("name,settings", [("d.luks", "version=1,iterations=1000"), ("d.luks", "iterations=4"),
                                           ("d.qcow2", "encrypt.format=luks,encrypt.iterations=1000")])
def test_keys(folder, name, settings):
    img("create", "-f", name[2:], "-o", settings, "--key", "key", name, "1M")
    img("convert", "--key", "key", name, "out.raw")
    img("convert", "--key", "-", name, "out.raw", input=KEY)
    assert "does not open it; it ends in a line end" in img("convert", "--key", "wrong", name, "out.raw", status=1)
    assert "needs its key" in img("convert", name, "out.raw", status=1)
    assert "No such file" in img("convert", "--key", "missing", name, "out.raw", status=2)
    (folder / "empty").write_bytes(b"")
    assert "is empty" in img("convert", "--key", "empty", name, "out.raw", status=2)
    assert "encrypted: yes" in img("info", name)
    assert "needs a key" in img("create", "-f", name[2:], "-o", settings, "new", "1M", status=1)


def poke(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_damaged_headers(folder):
    img("create", "-f", "luks", "--key", "key", "two.luks", "1M")
    poke("two.luks", 4096, b"\xff" * 64)
    before = hashlib.sha256((folder / "two.luks").read_bytes()).digest()
    img("convert", "-f", "luks", "--key", "key", "two.luks", "out.raw")  # from the second copy of the header
    assert hashlib.sha256((folder / "two.luks").read_bytes()).digest() == before, "reading repaired the image"
    poke("two.luks", 16384, b"\xff" * 16384)
    assert "damaged or cut off" in img("convert", "-f", "luks", "--key", "key", "two.luks", "out.raw", status=1)
    img("create", "-f", "luks", "-o", "version=1,iterations=1000", "--key", "key", "one.luks", "1M")
    for size in 100, 4096, 100000:
        os.truncate("one.luks", size)
        img("convert", "-f", "luks", "--key", "key", "one.luks", "out.raw", status=1)
    (folder / "raw.luks").write_bytes(b"no header" * 1000)
    assert "no LUKS header" in img("info", "-f", "luks", "raw.luks", status=1)


def luks2_json(path, change):
    """Rewrites the JSON of both headers, with their checksums."""
    image_bytes = bytearray(path.read_bytes())
    for start in 0, 16384:
        area = image_bytes[start:start + 16384]
        header = json.loads(area[4096:].split(b"\0")[0])
        change(header)
        text = json.dumps(header, separators=(",", ":")).encode()
        area[4096:] = text + bytes(16384 - 4096 - len(text))
        area[0x1c0:0x200] = bytes(64)
        area[0x1c0:0x1e0] = hashlib.sha256(area).digest()
        image_bytes[start:start + 16384] = area
    path.write_bytes(image_bytes)


def set_in(*path_and_value):
    def change(header):
        for name in path_and_value[:-2]:
            header = header[name]
        header[path_and_value[-2]] = path_and_value[-1]
    return change


def ask_for_2_to_the_64(header):
    """Nine slots, whose bytes of memory times passes are that together."""
    slot = header["keyslots"]["0"]
    size, start = int(slot["area"]["size"]), int(slot["area"]["offset"])
    for i in range(9):
        area = {**slot["area"], "offset": str(start + i * size)}
        kdf = {**slot["kdf"], "memory": 1 << 20, "time": (1 << 31) - 1 if i else 8}
        header["keyslots"][str(i)] = {**slot, "area": area, "kdf": kdf}
    header["digests"]["0"]["keyslots"] = [str(i) for i in range(9)]


@pytest.mark.parametrize("change,says", [
    (ask_for_2_to_the_64, "more than any sane one"),
    (set_in("keyslots", "0", "kdf", "memory", 1 << 30), "MiB of memory"),
    (set_in("keyslots", "0", "kdf", "memory", 4294967295), "asks for"),
    (set_in("keyslots", "0", "kdf", "time", 4000000000), "more than any sane one"),
    (set_in("digests", "0", "iterations", 4294967295), "to verify a key"),
    (set_in("segments", "0", "encryption", "serpent-xts-plain64"), "not supported"),
    (set_in("segments", "0", "sector_size", 8192), "impossible"),
    (set_in("segments", "0", "size", str(1 << 40)), "cut off"),
    (set_in("segments", "0", "integrity", {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"}),
     "with integrity"),
    (set_in("config", "requirements", {"mandatory": ["a-new-feature"]}), "not known"),
])
def test_hostile_luks2_headers(folder, change, says):
    img("create", "-f", "luks", "--key", "key", "h.luks", "1M")
    luks2_json(folder / "h.luks", change)
    assert says in img("convert", "-f", "luks", "--key", "key", "h.luks", "out.raw", status=1, timeout=20)


def test_hostile_luks1_headers(folder):
    img("create", "-f", "luks", "-o", "version=1,iterations=1000", "--key", "key", "h.luks", "1M")
    good = (folder / "h.luks").read_bytes()
    for offset, says in (164, "to verify a key"), (208 + 4, "more than any sane one"):  # digest's, first slot's iterations
        (folder / "h.luks").write_bytes(good)
        poke("h.luks", offset, b"\xff\xff\xff\xff")
        assert says in img("convert", "-f", "luks", "--key", "key", "h.luks", "out.raw", status=1)


def test_no_key_leaves_a_trace(folder):
    """Neither in what is printed, nor in the arguments of the process."""
    secret = "s3cr3t-of-the-test"
    (folder / "key").write_text(secret)
    img("create", "-f", "luks", "--key", "key", "d.luks", "1M")
    assert secret not in img("info", "d.luks") + img("info", "--output=json", "d.luks")
    assert secret.encode() not in (folder / "d.luks").read_bytes()


def test_debian_boots_from_an_encrypted_disk(engine, tmp):
    (tmp / "key").write_bytes(KEY)
    base = disk_copy(tmp, image("debian") / "debian.ext4")
    disk = tmp / "root.qcow2"
    img("convert", "-f", "raw", "-O", "qcow2", "-o", "encrypt.format=luks", "--target-key", tmp / "key", base, disk)
    with debian(engine, tmp, script="echo kept >/root/kept; sync; echo WRITTEN", disk=f"{disk},key={tmp / 'key'}") as vmm:
        assert "WRITTEN" in finish(vmm, 600)
    img("check", disk)
    img("convert", "--key", tmp / "key", "-O", "raw", disk, base)
    with debian(engine, tmp, script="cat /root/kept", disk=base) as vmm:
        assert "kept" in finish(vmm, 600)


@pytest.mark.parametrize("settings", ["version=1,iterations=1000", "sector_size=4096"])
def test_a_guest_mounts_a_luks_disk(engine, tmp, settings):
    (tmp / "key").write_bytes(KEY)
    disk, copy = tmp / "data.luks", tmp / "copy.raw"
    img("create", "-f", "luks", "-o", settings, "--key", tmp / "key", disk, "32M")
    copy.write_bytes(bytes(32 * MIB))
    script = """
        head -c 9m /dev/urandom >/tmp/a
        dd if=/dev/zero of=/dev/vda bs=1M count=32 2>/dev/null
        dd if=/tmp/a of=/dev/vda bs=4k seek=300 conv=fsync,notrunc 2>/dev/null
        dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>/dev/null
        dd if=/dev/vda bs=4k skip=300 count=2304 2>/dev/null | cmp - /tmp/a && echo ALIKE
    """
    with busybox(engine, tmp, "--disk", f"{disk},key={tmp / 'key'}", "--disk", copy, script=script) as vmm:
        assert "ALIKE" in finish(vmm, 240)
    assert "identical" in img("compare", "--key", tmp / "key", "-F", "raw", disk, copy)


def test_the_api_takes_a_key_file_and_shows_no_key(engine, tmp):
    secret = "s3cr3t-of-the-test"
    (tmp / "key").write_text(secret)
    disk = tmp / "data.img"
    img("create", "-f", "luks", "-o", "version=1,iterations=1000", "--key", tmp / "key", disk, "1M")
    path = tmp / "api.sock"
    with Vmm("--engine", engine, "--api-sock", path, "--console", "stdio", "--log-level", "debug") as vmm:
        client = Client(path)
        client.put("/machine-config", vcpu_count=1, mem_size_mib=256, engine=engine)
        client.put("/drives/data", drive_id="data", path_on_host=str(disk), is_root_device=False, is_read_only=False, format="luks",
                   key_file=str(tmp / "key"))
        script = "printf hello | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null; head -c 5 /dev/vda; echo"
        client.put("/boot-source", kernel_image_path=str(image("busybox") / "vmlinuz"), initrd_path=str(initramfs(tmp, script)),
                   boot_args=f"{CMDLINE} polder.test=run")
        client.put("/actions", action_type="InstanceStart")
        shown = client.get("/vm/config")
        assert shown["drives"][0]["key_file"] == str(tmp / "key")
        assert "hello" in finish(vmm)
        assert secret not in json.dumps(shown) + vmm.text
    img("convert", "--key", tmp / "key", "-f", "luks", disk, tmp / "plain")
    assert (tmp / "plain").read_bytes()[:5] == b"hello"


def test_a_guest_gets_no_disk_without_the_key(engine, tmp):
    (tmp / "key").write_bytes(b"another")
    disk = tmp / "data.luks"
    img("create", "-f", "luks", "-o", "version=1,iterations=1000", "--key", tmp / "key", disk, "1M")
    (tmp / "key").write_bytes(KEY)
    for words, says in ((f",key={tmp / 'key'}", "does not open it"), ("", "needs its key")):
        with busybox(engine, tmp, "--disk", f"{disk}{words}", script="true") as vmm:
            assert vmm.wait(60) == 1
