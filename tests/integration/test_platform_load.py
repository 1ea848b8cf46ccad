"""What the platform holds while instances come and go; bench/platform measures the same over many more."""
import pytest

from images import image
from platforms import BUSYBOX, Platform, Resources, busybox_archive, live_once

if not BUSYBOX:
    pytest.skip("needs busybox", allow_module_level=True)
LIVES = 8


def test_lives_of_instances_leave_nothing(tmp_path):
    (tmp_path / "busybox.tar").write_bytes(busybox_archive())
    with Platform("--guest-dir", image("microvm"), "--engine", "jit") as daemon:
        daemon.polder("image", "import", tmp_path / "busybox.tar", "busybox")
        live_once(daemon)  # what is made once is there after this
        resources = Resources(daemon)
        before = resources.counts()
        for _ in range(LIVES):
            live_once(daemon)
        # a connection that was being closed may have been counted before
        daemon.until(lambda: all(count <= before[what] for what, count in resources.counts().items()))
        assert daemon.client.get("/v1/instances") == []
