"""polderd's state folder in trouble: a damaged store and the way back to its copy, a full disk."""
import signal
import subprocess
from pathlib import Path

import pytest

from busybox_platform import busybox_platform
from polderd import BIN, ApiError, Polderd

LOST = "0123456789abcdef"


def scribble(path):
    """Over all pages but the first."""
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"scribble" * ((path.stat().st_size - 4096) // 8))


def behead(path):
    with open(path, "r+b") as file:
        file.write(b"no database" * 10)


def truncate(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def volumes(daemon):
    return {v["name"] for v in daemon.client.get("/v1/volumes")}


def tokens(daemon):
    return {t["name"] for t in daemon.client.get("/v1/tokens")}


@pytest.mark.parametrize("damage", [scribble, behead, truncate])
def test_a_damaged_store_is_told_and_restored(damage):
    with Polderd() as daemon:
        daemon.client.post("/v1/tokens", {"name": "early", "role": "viewer"})
        daemon.restart()  # its end makes a copy
        daemon.client.post("/v1/tokens", {"name": "late", "role": "viewer"})
        daemon.client.post("/v1/volumes", {"name": "later", "size_bytes": 1 << 20})
        daemon.stop(signal.SIGKILL)
        damage(daemon.state / "state.db")
        for name in ("state.db-wal", "state.db-journal"):
            (daemon.state / name).unlink(missing_ok=True)
        before = daemon.log()
        daemon.start(wait=False)
        assert daemon.process.wait(20) == 1
        said = daemon.log().removeprefix(before).splitlines()
        assert len(said) == 2 and "damaged" in said[0]
        assert f"the store '{daemon.state}/state.db' is damaged: start polderd with --restore to go back to its copy of 20" in said[1]

        (daemon.state / "instances" / LOST).mkdir(parents=True)  # of an instance that the copy does not know
        (daemon.state / "instances" / LOST / "root.qcow2").write_text("kept")
        daemon.start("--restore")
        assert tokens(daemon) == {"early"} and volumes(daemon) == {"later"}
        assert (daemon.state / "lost" / LOST / "root.qcow2").read_text() == "kept"
        assert (daemon.state / "state.db.damaged").exists()
        daemon.client.post("/v1/tokens", {"name": "again", "role": "viewer"})
        daemon.restart()
        assert tokens(daemon) == {"early", "again"}


def test_restore_without_a_copy_changes_nothing(tmp_path):
    (tmp_path / "state.db").write_bytes(b"x" * 5000)
    done = subprocess.run([BIN / "polderd", "--state-dir", tmp_path, "--restore"], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (
        1, f"polderd: restore: there is no copy '{tmp_path}/backup.db' to restore: No such file or directory\n")
    assert (tmp_path / "state.db").read_bytes() == b"x" * 5000


def fill(folder):
    with open(folder / "filler", "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                pass


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    on_small = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=64m,mode=711 none {small} && exec "$@"', "sh")
    with busybox_platform(tmp_path, prefix=on_small, state=small) as daemon:
        inside = Path(f"/proc/{daemon.process.pid}/root{small}")
        spec = {"image": "busybox", "name": "keeper", "memory_bytes": 128 << 20, "networks": [], "command": ["cat", "/srv/file"],
                "volumes": [{"volume": "data", "path": "/srv"}]}
        daemon.client.post("/v1/volumes", {"name": "data", "size_bytes": 16 << 20, "fs": "ext4"})
        daemon.polder("run", "--rm", "-m", "128M", "-v", "data:/srv", "busybox", "sh", "-c", "echo kept >/srv/file")
        daemon.client.do("POST", "/v1/instances", spec)
        fill(inside)
        for arguments in (("volume", "create", "more"), ("start", "keeper"), ("token", "create", "t", "--role", "viewer")):
            _, said = daemon.polder(*arguments, status=1)
            assert said.count("\n") == 1 and ("full" in said or "No space left" in said), said
        with pytest.raises(ApiError) as refused:
            daemon.client.post("/v1/tokens", {"name": "t", "role": "viewer"})
        assert refused.value.status == 503
        assert "keeper" in daemon.polder("ps", "-a")[0] and volumes(daemon) == {"data"}
        (inside / "filler").unlink()
        daemon.client.post("/v1/volumes", {"name": "more", "size_bytes": 1 << 20})
        daemon.polder("start", "keeper")
        daemon.until(lambda: daemon.document("keeper")["status"]["state"] == "stopped")
        assert daemon.polder("logs", "keeper")[0] == "kept\n"
