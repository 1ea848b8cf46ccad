"""virtio-blk: what a guest writes is in the host's file, survives a reboot, and is a clean file system."""
import hashlib
import re
import subprocess

import pytest

from api_client import Client
from guests import busybox, finish
from images import disk_copy


def ext4_disk(tmp, size="64M"):
    disk = tmp / "data.ext4"
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", disk, size], check=True)
    return disk


def dump(disk, name):
    return subprocess.run(["/sbin/debugfs", "-R", f"cat {name}", disk], capture_output=True, check=True).stdout


def test_write_reboot_read_back(engine, tmp):
    disk = ext4_disk(tmp)
    script = """
        mount -t ext4 /dev/vda /mnt || exit 1
        if [ -f /mnt/data ]; then
            echo "second $(sha256sum </mnt/data)"; umount /mnt; exit 0
        fi
        dd if=/dev/urandom of=/mnt/data bs=1M count=16 2>/dev/null
        echo "first $(sha256sum </mnt/data)"
        umount /mnt; reboot -f; sleep 60
    """
    with busybox(engine, tmp, "--disk", disk, script=script) as vmm:
        text = finish(vmm, 240)
    first, second = (re.search(rf"^{which} (\w+)", text, re.M)[1] for which in ("first", "second"))
    assert first == second == hashlib.sha256(dump(disk, "data")).hexdigest()
    fsck = subprocess.run(["/sbin/e2fsck", "-fn", disk], capture_output=True, text=True)
    assert fsck.returncode == 0, fsck.stdout


def test_flushed_data_survives_a_kill(engine, tmp):
    disk = ext4_disk(tmp)
    script = """
        mount -t ext4 /dev/vda /mnt && head -c 1m /dev/urandom >/mnt/kept && sync && [ -s /mnt/kept ] || exit 1
        echo "SYNCED $(sha256sum </mnt/kept)"; sleep 600
    """
    with busybox(engine, tmp, "--disk", disk, script=script) as vmm:
        kept = vmm.wait_for(r"^SYNCED (\w{64})", 120)[1]
    subprocess.run(["/sbin/e2fsck", "-fy", disk], capture_output=True)  # replays the journal, as the next mount would
    assert hashlib.sha256(dump(disk, "kept")).hexdigest() == kept


def test_read_only_disk(engine, tmp):
    disk = tmp / "ro.raw"
    disk.write_bytes(b"polder" * 4096)
    before = disk.read_bytes()
    script = "head -c 6 /dev/vda; echo; cat /sys/block/vda/ro; echo x >/dev/vda && exit 9; true"
    with busybox(engine, tmp, "--disk", f"{disk},ro", script=script) as vmm:
        text = finish(vmm)
    assert "polder\n1\n" in text
    assert disk.read_bytes() == before


def test_four_disks_keep_their_order(engine, tmp):
    options = []
    for name in "abcd":
        disk = tmp / name
        disk.write_bytes(name.encode() * 512 * (ord(name) - ord("a") + 1))
        options += ["--disk", disk]
    script = "for d in a b c d; do head -c 1 /dev/vd$d; cat /sys/block/vd$d/size; done"
    with busybox(engine, tmp, *options, script=script) as vmm:
        assert "a1\nb2\nc3\nd4\n" in finish(vmm)


def test_parallel_writers(engine, tmp):
    """Four writers on four vCPUs; each reads back its own data after the cache was dropped."""
    disk = tmp / "raw"
    disk.write_bytes(bytes(64 << 20))
    script = """
        for i in 0 1 2 3; do (
            head -c 8m /dev/urandom >/tmp/$i
            dd if=/tmp/$i of=/dev/vda bs=64k seek=$((i * 256)) conv=fsync,notrunc 2>/dev/null
        ) & done; wait
        echo 3 >/proc/sys/vm/drop_caches
        for i in 0 1 2 3; do dd if=/dev/vda bs=64k skip=$((i * 256)) count=128 2>/dev/null | cmp - /tmp/$i || exit 1; done
        echo SAME
    """
    with busybox(engine, tmp, "--disk", disk, cpus=4, memory="512M", script=script) as vmm:
        assert "SAME" in finish(vmm, 180)


@pytest.mark.not_nested("there the disk without a limit is hardly faster than those with one")
def test_disks_share_a_limit_by_weight(engine, tmp):
    """Of 400 requests a second, three in four are the second disk's; the third is in no group."""
    disks = [tmp / f"{name}.raw" for name in "abc"]
    for disk in disks:
        subprocess.run(["truncate", "-s", "64M", disk], check=True)
    script = """
        load() { while :; do dd if=/dev/$1 of=/dev/null bs=4k count=1000 skip=$2 iflag=direct 2>/dev/null; done; }
        reads() { cut -c1-20 /sys/block/$1/stat | awk '{print $1}'; }
        for skip in 0 2000 4000; do load vda $skip & load vdb $skip & done
        load vdc 0 &
        sleep 1
        a=$(reads vda) b=$(reads vdb) c=$(reads vdc)
        sleep 5
        echo "READS $(($(reads vda) - a)) $(($(reads vdb) - b)) $(($(reads vdc) - c))"
    """
    group = ["--throttle", "slow,iops=400", "--disk", f"{disks[0]},throttle=slow", "--disk", f"{disks[1]},throttle=slow,weight=300",
             "--disk", disks[2]]
    with busybox(engine, tmp, *group, script=script) as vmm:
        text = finish(vmm, 240)
    first, second, free = (int(number) for number in re.search(r"^READS (\d+) (\d+) (\d+)", text, re.M).groups())
    assert 1600 <= first + second <= 2400, text
    assert 2.3 <= second / first <= 4, text
    assert free > 2 * (first + second), text


def test_limits_of_a_group_change(engine, tmp):
    """Reads that would take a quarter of an hour end once group and disk have no limit any more."""
    disk = tmp / "disk.raw"
    subprocess.run(["truncate", "-s", "64M", disk], check=True)
    script = "echo READING; dd if=/dev/vda of=/dev/null bs=4k count=4000 iflag=direct 2>/dev/null && echo READ"
    options = ["--disk", f"{disk},throttle=slow", "--throttle", "slow,iops=4", "--api-sock", tmp / "api.sock"]
    with busybox(engine, tmp, *options, script=script) as vmm:
        api = Client(tmp / "api.sock")
        vmm.wait_for("^READING", 120)
        api.patch("/drives/drive0", drive_id="drive0", throttle={"limit": 4})
        api.patch("/throttles/slow", throttle_id="slow", iops={"rate": 0}, read_iops={"rate": 100000})
        shown = api.get("/vm/config")
        assert shown["throttles"][0]["iops"] is None and shown["throttles"][0]["read_iops"]["rate"] == 100000
        assert shown["drives"][0]["throttle"] == {"throttle_id": "slow", "weight": 0, "reserve": 0, "limit": 4}
        assert "READ\n" not in vmm.text.replace("\r", "")
        api.patch("/drives/drive0", drive_id="drive0", throttle={"limit": 0})
        assert "READ" in finish(vmm, 120)
