"""Disks are snapshotted, copied, moved and enlarged while their guest writes them."""
import hashlib
import json
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from api_client import Client
from images import image, initramfs
from vmm import SCALE, TOP, Vmm

POLDER_IMG = Path(os.environ.get("POLDER_BIN", TOP / "build/bin")) / "polder-img"
MIB = 1 << 20
# The guest writes one block at each of so many places of its disk, one after the other, over and over; in a nested host fewer.
SIZE, MARKS = (24 * MIB, 16) if os.environ.get("POLDER_RESULTS") else (96 * MIB, 48)
STEP = SIZE // MARKS
same_code = pytest.mark.not_nested("both engines have the same block layer; other tests here run it beside vCPUs of KVM")

WRITER = f"""
    exec 2>/dev/null
    trap 'stop=1' USR1
    (read -r go; kill -USR1 $$) </dev/console &
    g=0; while [ -z "$stop" ]; do
        g=$((g + 1)); echo "WRITING $g"
        i=0; while [ $i -lt {MARKS} ]; do
            printf '%-4095s\\n' "mark $i $g" | dd of=/dev/vda bs=4096 seek=$((i * {STEP // 4096})) conv=notrunc,fsync
            i=$((i + 1))
        done
    done
    sync; echo "WROTE $g SUM $(sha256sum </dev/vda | cut -d' ' -f1) SECTORS $(cat /sys/block/vda/size)"
"""


def img(*argv):
    done = subprocess.run([POLDER_IMG, *map(str, argv)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def raw_of(disk, tmp):
    raw = tmp / f"{disk.name}.raw"
    img("convert", "-O", "raw", disk, raw)
    return raw


def generations(raw):
    """Of each place, in order; the bytes between the places are as the test made them."""
    found = []
    with open(raw, "rb") as file:
        for i in range(MARKS):
            block = file.read(STEP)
            mark = block[:4096].decode().split()
            assert mark[:2] == ["mark", str(i)] and block[4096:] == filler(i)[4096:], f"{raw}: place {i}"
            found.append(int(mark[2]))
    return found


def one_instant(raw):
    """What the guest had written at some instant: a front of one generation, and behind it the generation before."""
    found = generations(raw)
    front = found.count(found[0])
    assert found == [found[0]] * front + [found[0] - 1] * (MARKS - front), found
    return found[0]


def filler(i):
    return bytes(STEP) if i % 8 == 7 else (b"%08d" % i) * (STEP // 8)  # some places are holes


def make_disk(path):
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for i in range(MARKS):
            if i % 8 != 7:
                file.seek(i * STEP)
                file.write(filler(i))
    return path


class Guest(Client):
    def __init__(self, engine, tmp, disk, options="", config=None):
        self.socket = tmp / "api.sock"
        machine = ["--config-file", config] if config else [
            "--engine", engine, "--kernel", image("busybox") / "vmlinuz", "--initrd", initramfs(tmp, WRITER), "--cmdline",
            "console=ttyS0 quiet panic=-1 polder.test=run", "--memory", "256M", "--disk", f"{disk},cache=writeback{options}"]
        self.vmm = Vmm(*machine, "--console", "stdio", "--api-sock", self.socket)

    def __enter__(self):
        self.vmm.__enter__()
        super().__init__(self.socket)
        self.vmm.wait_for("^WRITING 2$", 180)
        return self

    def __exit__(self, *exc):
        return self.vmm.__exit__(*exc)

    def state(self, *wanted, timeout=60):
        deadline = time.monotonic() + timeout * SCALE
        while (status := self.get("/drives/drive0/copy"))["state"] not in wanted:
            assert time.monotonic() < deadline and status["state"] in ("Running", "Ready"), status
            time.sleep(0.05)
        return status

    def end(self):
        self.vmm.send("go\n")
        found = self.vmm.wait_for(r"^WROTE (\d+) SUM (\w{64}) SECTORS (\d+)\n", 120)
        assert self.vmm.wait(60) == 0, self.vmm.describe()
        return int(found[1]), found[2], int(found[3])


def sum_of(raw):
    return subprocess.run(["sha256sum", raw], capture_output=True, text=True, check=True).stdout[:64]


def more_writes(guest):
    """Until it has written all places once more."""
    guest.vmm.wait_for(r"^WRITING \d+\n[^W]*WRITING", 60, start=len(guest.vmm.text))


@pytest.fixture(params=[pytest.param("raw", marks=same_code), "qcow2"])
def disk(request, tmp):
    raw = make_disk(tmp / "disk.raw")
    if request.param == "raw":
        return raw
    img("convert", "-O", "qcow2", raw, tmp / "disk.qcow2")
    return tmp / "disk.qcow2"


def test_backup_is_one_instant(engine, tmp, disk):
    with Guest(engine, tmp, disk) as guest:
        assert guest.get("/drives/drive0/copy") == {"state": "None"}
        for number in range(3):
            guest.put("/drives/drive0/copy", kind="Backup", path_on_host=str(tmp / f"backup{number}.qcow2"))
            status = guest.state("Done")
            assert status["copied_bytes"] == status["total_bytes"] == SIZE
        guest.put("/drives/drive0/copy", kind="Backup", path_on_host=str(tmp / "backup3.img"), format="raw")
        guest.state("Done")
        last, digest, _ = guest.end()
    at = [one_instant(raw_of(tmp / f"backup{number}.qcow2", tmp)) for number in range(3)] + [one_instant(tmp / "backup3.img")]
    assert at == sorted(at) and at[-1] <= last
    for number in range(3):
        img("check", tmp / f"backup{number}.qcow2")
    assert sum_of(raw_of(disk, tmp) if disk.suffix == ".qcow2" else disk) == digest
    assert not list(tmp.glob("*.part"))


@same_code
def test_incremental_backups(engine, tmp):
    disk = tmp / "disk.qcow2"
    img("convert", "-O", "qcow2", make_disk(tmp / "disk.raw"), disk)
    made = []

    def backup(guest, **kw):
        path = tmp / f"backup{len(made)}.qcow2"
        guest.put("/drives/drive0/copy", kind="Backup", path_on_host=str(path), bitmap="daily", **kw)
        guest.state("Done")
        made.append(path)

    with Guest(engine, tmp, disk) as guest:
        guest.refused("PUT", "/drives/drive0/copy", {"kind": "Backup", "path_on_host": str(tmp / "x.qcow2"), "bitmap": "daily",
                                                     "base_path_on_host": str(disk)}, "has no bitmap 'daily'")
        guest.refused("PUT", "/drives/drive0/copy", {"kind": "Mirror", "path_on_host": str(tmp / "x.qcow2"), "bitmap": "daily"},
                      "only a backup")
        backup(guest)
        for _ in range(2):
            more_writes(guest)
            backup(guest, base_path_on_host=str(made[-1]))
        guest.put("/drives/drive0/copy", kind="Backup", path_on_host=str(tmp / "gone.qcow2"), bitmap="daily")
        guest.patch("/drives/drive0/copy", action="Cancel")  # what it was to copy is still dirty
        guest.put("/drives/drive0/snapshot", path_on_host=str(tmp / "top.qcow2"))
        more_writes(guest)
        backup(guest, base_path_on_host=str(made[-1]))
        guest.end()
    with Guest(engine, tmp, tmp / "top.qcow2") as guest:
        backup(guest, base_path_on_host=str(made[-1]))
        _, digest, _ = guest.end()
    for path in made:
        img("check", path)
        one_instant(raw_of(path, tmp))
    sizes = [path.stat().st_size for path in made]
    assert max(sizes[1:]) < SIZE // 12 < sizes[0] // 4, sizes
    shown = json.loads(img("info", "--output=json", tmp / "top.qcow2"))["format-specific"]["data"]["bitmaps"]
    assert [bitmap["name"] for bitmap in shown] == ["daily"]


def test_an_incremental_backup_knows_what_was_discarded(tmp):
    """What became zeroes since the backup below must not show from there."""
    disk, backups = tmp / "disk.qcow2", [tmp / "first.qcow2", tmp / "second.qcow2"]
    img("create", "-f", "qcow2", disk, 16 * MIB)
    script = f"""
        dd if=/dev/urandom of=/dev/vda bs=1M count=12 2>/dev/null; sync; echo FILLED
        read -r go; blkdiscard -o {MIB} -l {2 * MIB} /dev/vda && blkdiscard -o {5 * MIB} -l 65536 /dev/vda && sync && echo GONE
        read -r go; echo SUM $(sha256sum </dev/vda | cut -d' ' -f1)
    """
    with Vmm("--engine", "jit", "--kernel", image("busybox") / "vmlinuz", "--initrd", initramfs(tmp, script), "--cmdline",
             "console=ttyS0 quiet panic=-1 polder.test=run", "--memory", "128M", "--disk", disk, "--console", "stdio",
             "--api-sock", tmp / "api.sock") as vmm:
        for says, path, more in (("FILLED", backups[0], {}), ("GONE", backups[1], {"base_path_on_host": str(backups[0])})):
            vmm.wait_for(f"^{says}$", 120)
            client = Client(tmp / "api.sock")
            client.put("/drives/drive0/copy", kind="Backup", path_on_host=str(path), bitmap="daily", **more)
            deadline = time.monotonic() + 60 * SCALE
            while client.get("/drives/drive0/copy")["state"] != "Done":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            vmm.send("go\n")
        digest = vmm.wait_for(r"^SUM (\w{64})\n", 60)[1]
        assert vmm.wait(60) == 0, vmm.describe()
    assert digest == hashlib.sha256(raw_of(backups[1], tmp).read_bytes()).hexdigest()
    assert backups[1].stat().st_size < MIB


def test_disk_moves_to_its_mirror(engine, tmp, disk):
    with Guest(engine, tmp, disk) as guest:
        guest.put("/drives/drive0/copy", kind="Mirror", path_on_host=str(tmp / "new.qcow2"))
        guest.refused("PUT", "/drives/drive0/copy", {"kind": "Backup", "path_on_host": str(tmp / "other")}, "being copied")
        (tmp / "third").write_bytes(bytes(SIZE))
        guest.refused("PATCH", "/drives/drive0", {"drive_id": "drive0", "path_on_host": str(tmp / "third")}, "busy")
        guest.refused("PUT", "/drives/drive0/snapshot", {"path_on_host": str(tmp / "other")}, "being copied")
        guest.state("Ready")
        more_writes(guest)
        guest.patch("/drives/drive0/copy", action="Complete")
        assert guest.get("/drives/drive0/copy")["state"] == "Done"
        shown = guest.get("/vm/config")["drives"][0]
        assert (shown["path_on_host"], shown["format"]) == (str(tmp / "new.qcow2"), "qcow2")
        old = raw_of(disk, tmp) if disk.suffix == ".qcow2" else disk  # nobody has it open any more
        before = sum_of(old)
        moved = one_instant(old)
        more_writes(guest)
        guest.put("/drives/drive0/snapshot", path_on_host=str(tmp / "top.qcow2"))
        last, digest, _ = guest.end()
    assert moved < last and sum_of(old) == before
    for name in ("new.qcow2", "top.qcow2"):
        img("check", tmp / name)
    new = raw_of(tmp / "top.qcow2", tmp)
    assert sum_of(new) == digest and generations(new) == [last] * MARKS


def test_snapshots_under_load(engine, tmp, disk):
    with Guest(engine, tmp, disk) as guest:
        for number in range(4):
            guest.put("/drives/drive0/snapshot", path_on_host=str(tmp / f"top{number}.qcow2"))
            more_writes(guest)
        guest.refused("PUT", "/drives/drive0/snapshot", {"path_on_host": str(tmp / "top0.qcow2")}, "exists")
        assert guest.get("/vm/config")["drives"][0]["path_on_host"] == str(tmp / "top3.qcow2")
        kept = [one_instant(raw_of(name, tmp)) for name in (tmp / "top0.qcow2", tmp / "top1.qcow2", tmp / "top2.qcow2")]
        base = one_instant(raw_of(disk, tmp) if disk.suffix == ".qcow2" else disk)
        last, digest, _ = guest.end()
    assert base <= kept[0] <= kept[1] <= kept[2] <= last and base < last
    for number in range(4):
        img("check", tmp / f"top{number}.qcow2")
    assert json.loads(img("info", "--output=json", tmp / "top0.qcow2"))["backing-filename"] == disk.name
    assert sum_of(raw_of(tmp / "top3.qcow2", tmp)) == digest


def test_overlays_are_merged(engine, tmp, disk):
    """Commit brings a chain of three, which has grown, back to its base, flatten makes an overlay stand alone, all while the
    guest writes."""
    with Guest(engine, tmp, disk) as guest:
        guest.refused("PUT", "/drives/drive0/copy", {"kind": "Commit"}, "no backing file")
        guest.refused("PUT", "/drives/drive0/copy", {"kind": "Flatten", "path_on_host": str(tmp / "x")}, "path_on_host")
        for number in range(2):
            guest.put("/drives/drive0/snapshot", path_on_host=str(tmp / f"top{number}.qcow2"))
        guest.refused("PATCH", "/drives/drive0", {"drive_id": "drive0", "size": SIZE - 4096}, "only grow")
        guest.refused("PATCH", "/drives/drive0", {"drive_id": "drive0", "size": SIZE + 100}, "multiple of 512")
        guest.patch("/drives/drive0", drive_id="drive0", size=SIZE + 3 * MIB)
        more_writes(guest)
        for base in (tmp / "top0.qcow2", disk):
            guest.put("/drives/drive0/copy", kind="Commit")
            guest.state("Ready")
            more_writes(guest)
            guest.patch("/drives/drive0/copy", action="Complete")
            assert guest.get("/vm/config")["drives"][0]["path_on_host"] == str(base)
        guest.put("/drives/drive0/snapshot", path_on_host=str(tmp / "alone.qcow2"))
        guest.put("/drives/drive0/copy", kind="Commit")
        guest.patch("/drives/drive0/copy", action="Cancel")
        more_writes(guest)
        guest.put("/drives/drive0/copy", kind="Flatten")
        guest.state("Done")
        img("info", disk)  # nobody has it open for writing
        _, digest, sectors = guest.end()
    assert sectors == (SIZE + 3 * MIB) // 512
    img("check", tmp / "alone.qcow2")
    assert "backing-filename" not in json.loads(img("info", "--output=json", tmp / "alone.qcow2"))
    assert sum_of(raw_of(tmp / "alone.qcow2", tmp)) == digest
    if disk.suffix == ".qcow2":
        img("check", disk)


def test_overlay_gets_another_base(engine, tmp):
    """Rebase to a base that reads the same, and to one that does not, while the guest writes; from raw to qcow2 and back."""
    disk, same, other, top = make_disk(tmp / "disk.raw"), tmp / "same.qcow2", tmp / "other.raw", tmp / "top.qcow2"
    img("convert", "-O", "qcow2", disk, same)
    other.write_bytes(b"other   " * (SIZE // 16) + bytes(SIZE // 4) + b"\xff" * (SIZE // 2))
    img("create", "-f", "qcow2", "-b", disk, "-F", "raw", top, SIZE)

    def rebase(guest, base, **kw):
        guest.put("/drives/drive0/copy", kind="Rebase", base_path_on_host=str(base), **kw)
        guest.state("Done")
        more_writes(guest)

    def refused(guest, why, **kw):
        guest.refused("PUT", "/drives/drive0/copy", {"kind": "Rebase", **kw}, why)

    with Guest(engine, tmp, top) as guest:
        refused(guest, "needs base_path_on_host")
        refused(guest, "No such file", base_path_on_host=str(tmp / "none"))
        refused(guest, "needs a base_name", base_path_on_host="fd:0")
        refused(guest, "in use", base_path_on_host=str(top))
        guest.put("/drives/drive0/snapshot", name="old")
        refused(guest, "has the snapshot 'old'", base_path_on_host=str(other))
        for kind in ("Commit", "Flatten"):
            guest.refused("PUT", "/drives/drive0/copy", {"kind": kind}, "has the snapshot 'old'")
        guest.patch("/drives/drive0/snapshot", action="Delete", name="old")
        rebase(guest, same)
        few = top.stat().st_size
        img("convert", "-O", "qcow2", same, tmp / "again.qcow2")  # others read it, and nobody has the old base open
        img("resize", "-f", "raw", disk, SIZE)
        rebase(guest, other, format="raw")
        guest.put("/drives/drive0/copy", kind="Rebase", base_path_on_host=str(same))
        cancelled = guest.call("PATCH", "/drives/drive0/copy", {"action": "Cancel"}).status == 204  # else it was done already
        last, digest, _ = guest.end()
    img("check", top)
    shown = json.loads(img("info", "--output=json", top))
    named = shown["backing-filename"], shown["backing-filename-format"]
    assert named == (("other.raw", "raw") if cancelled else ("same.qcow2", "qcow2"))
    raw = raw_of(top, tmp)
    assert sum_of(raw) == digest and generations(raw) == [last] * MARKS
    assert few < SIZE // 4 < top.stat().st_size


@same_code
def test_a_chain_that_was_given_is_shown_as_it_is(engine, tmp):
    """Whatever becomes of it, a machine made anew from what is shown opens the right files."""
    base, top, new, other = (tmp / name for name in ("base.raw", "top.qcow2", "new.qcow2", "other.raw"))
    img("create", "-f", "qcow2", "-b", make_disk(base), "-F", "raw", top)
    moved = base.rename(tmp / "moved.raw")
    other.write_bytes(b"other   " * (SIZE // 8))

    def shown(*backing):
        drive = guest.get("/vm/config")["drives"][0]
        assert drive["backing"] == ([str(path) for path in backing] or None)

    with Guest(engine, tmp, top, f",backing={moved}") as guest:
        shown(moved)
        guest.put("/drives/drive0/snapshot", path_on_host=str(new))
        shown(top, moved)
        (tmp / "config.json").write_text(json.dumps(guest.get("/vm/config")))
        guest.end()
    with Guest(engine, tmp, None, config=tmp / "config.json") as guest:
        shown(top, moved)
        guest.put("/drives/drive0/copy", kind="Commit")
        guest.state("Ready")
        guest.patch("/drives/drive0/copy", action="Complete")
        shown(moved)
        guest.put("/drives/drive0/copy", kind="Rebase", base_path_on_host=str(other), format="raw")
        guest.state("Done")
        shown(other)
        (tmp / "config.json").write_text(json.dumps(guest.get("/vm/config")))
        guest.end()
    other.rename(moved)  # and nothing else
    (tmp / "config.json").write_text((tmp / "config.json").read_text().replace(str(other), str(moved)))
    with Guest(engine, tmp, None, config=tmp / "config.json") as guest:
        guest.put("/drives/drive0/copy", kind="Flatten")
        guest.state("Done")
        shown()
        last, digest, _ = guest.end()
    raw = raw_of(top, tmp)
    assert sum_of(raw) == digest and generations(raw) == [last] * MARKS


@same_code
@pytest.mark.parametrize("form", ["luks", "qcow2"])
def test_an_encrypted_disk_stays_so(engine, tmp, form):
    key = tmp / "key"
    key.write_bytes(b"a long key of many random bytes")
    disk = tmp / f"disk.{form}"
    settings = ["-o", "encrypt.format=luks"] if form == "qcow2" else []
    img("convert", "-O", form, *settings, "--target-key", key, make_disk(tmp / "disk.raw"), disk)
    with Guest(engine, tmp, disk, f",key={key}") as guest:
        guest.refused("PUT", "/drives/drive0/copy", {"kind": "Backup", "path_on_host": str(tmp / "x"), "format": "raw"},
                      "a raw image would not be")
        guest.put("/drives/drive0/snapshot", path_on_host=str(tmp / "top.qcow2"))
        guest.put("/drives/drive0/copy", kind="Backup", path_on_host=str(tmp / "backup.qcow2"))
        guest.state("Done")
        guest.put("/drives/drive0/copy", kind="Commit")
        guest.state("Ready")
        guest.patch("/drives/drive0/copy", action="Complete")
        guest.put("/drives/drive0/copy", kind="Mirror", path_on_host=str(tmp / "new.qcow2"))
        guest.state("Ready")
        guest.patch("/drives/drive0/copy", action="Complete")
        _, digest, _ = guest.end()
    for image_ in (disk, tmp / "top.qcow2", tmp / "backup.qcow2", tmp / "new.qcow2"):
        assert b"mark 1 " not in image_.read_bytes() and filler(1)[-64:] not in image_.read_bytes(), image_
    for name in ("backup", "new"):
        img("convert", "--key", key, "-O", "raw", tmp / f"{name}.qcow2", tmp / f"{name}.raw")
        one_instant(tmp / f"{name}.raw")
    assert sum_of(tmp / "new.raw") == digest


@same_code
def test_the_program_is_killed(engine, tmp):
    """At any instant, in the middle of snapshots and copies: what the guest had flushed is there, and no image is damaged."""
    disk = tmp / "disk.qcow2"
    img("convert", "-O", "qcow2", make_disk(tmp / "disk.raw"), disk)
    make_disk(tmp / "other.raw")
    img("resize", "-f", "raw", "--shrink", tmp / "other.raw", SIZE // 2)
    at, last = [], disk
    for number in range(5):
        with Guest(engine, tmp, last) as guest:
            if number == 1:
                guest.put("/drives/drive0/copy", kind="Mirror", path_on_host=str(tmp / "mirror.qcow2"))
            elif number == 3:
                guest.put("/drives/drive0/copy", kind="Commit")
            elif number == 4:
                guest.put("/drives/drive0/copy", kind="Rebase", base_path_on_host=str(tmp / "other.raw"))
            else:
                last = tmp / f"top{number}.qcow2"
                guest.put("/drives/drive0/snapshot", path_on_host=str(last))
            time.sleep(random.random() * SCALE)
            guest.vmm.process.kill()
            guest.vmm.wait(30)
        (tmp / "api.sock").unlink(missing_ok=True)
        checked = subprocess.run([POLDER_IMG, "check", last], capture_output=True, text=True)
        assert checked.returncode in (0, 3), checked.stdout  # sound, or with leaks
        at.append(one_instant(raw_of(last, tmp)))
        assert not list(tmp.glob("mirror*.qcow2"))
    assert min(at) >= 1


def test_snapshots_inside_of_the_image(engine, tmp):
    disk = tmp / "disk.qcow2"
    img("convert", "-O", "qcow2", make_disk(tmp / "disk.raw"), disk)
    with Guest(engine, tmp, disk) as guest:
        for name in ("one", "two", "three"):
            guest.put("/drives/drive0/snapshot", name=name)
            more_writes(guest)
        guest.refused("PUT", "/drives/drive0/snapshot", {"name": "two"}, "this name")
        guest.refused("PUT", "/drives/drive0/snapshot", {}, "path_on_host or a name")
        guest.patch("/drives/drive0/snapshot", action="Delete", name="two")
        guest.refused("PATCH", "/drives/drive0/snapshot", {"action": "Delete", "name": "two"}, "no snapshot")
        shown = guest.get("/drives/drive0/snapshot")["snapshots"]
        assert [s["name"] for s in shown] == ["one", "three"] and all(s["size"] == SIZE for s in shown)
        back = {"action": "Apply", "name": "one"}
        guest.refused("PATCH", "/drives/drive0/snapshot", back, "pause the machine first")
        guest.patch("/vm", state="Paused")
        guest.refused("PATCH", "/drives/drive0/snapshot", {"action": "Apply", "name": "two"}, "no snapshot")
        guest.patch("/drives/drive0/snapshot", **back)
        guest.put("/drives/drive0/copy", kind="Backup", path_on_host=str(tmp / "applied.qcow2"))
        guest.state("Done")
        said = len(guest.vmm.text)
        guest.patch("/vm", state="Resumed")
        guest.vmm.wait_for("^WRITING 2$", 180, start=said)  # the guest has started anew
        _, digest, _ = guest.end()
    img("check", disk)
    assert sum_of(raw_of(disk, tmp)) == digest
    at = []
    for name in ("one", "three"):
        img("snapshot", "-a", name, disk)
        at.append(one_instant(raw_of(disk, tmp)))
    assert 1 <= at[0] < at[1]
    assert one_instant(raw_of(tmp / "applied.qcow2", tmp)) == at[0]


@same_code
def test_a_copy_that_fails_leaves_the_guest_alone(engine, tmp):
    disk = make_disk(tmp / "disk.raw")
    small = tmp / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE // 3}", "tmpfs", small], check=True)
    try:
        with Guest(engine, tmp, disk) as guest:
            for kind in ("Backup", "Mirror"):
                guest.put("/drives/drive0/copy", kind=kind, path_on_host=str(small / "copy.qcow2"))
                assert guest.state("Failed")["error"] == "No space left on device"
                assert not list(small.iterdir())
            guest.put("/drives/drive0/copy", kind="Mirror", path_on_host=str(tmp / "mirror.qcow2"))
            guest.patch("/drives/drive0/copy", action="Cancel")
            assert guest.get("/drives/drive0/copy")["state"] == "Cancelled"
            guest.refused("PATCH", "/drives/drive0/copy", {"action": "Cancel"}, "no copy")
            guest.refused("PATCH", "/drives/drive0/copy", {"action": "Complete"}, "no mirror or commit")
            guest.refused("PUT", "/drives/drive0/copy", {"kind": "Mirror", "path_on_host": str(disk)}, "exists")
            guest.refused("PUT", "/drives/none/copy", {"kind": "Mirror", "path_on_host": str(tmp / "x")}, "none")
            guest.put("/drives/drive0/copy", kind="Mirror", path_on_host=str(tmp / "mirror.qcow2"))
            guest.state("Ready")
            last, digest, _ = guest.end()  # the program ends with a mirror that nobody completed
        assert sum_of(disk) == digest and generations(disk) == [last] * MARKS
        assert not list(tmp.glob("mirror*"))
    finally:
        subprocess.run(["umount", small], check=True)
