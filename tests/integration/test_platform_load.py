"""What the platform holds while instances come and go; bench/platform measures the same over many more."""
from busybox_platform import busybox_platform
from platform_load import Resources, live_once

LIVES = 8


def test_lives_of_instances_leave_nothing(tmp_path):
    with busybox_platform(tmp_path) as daemon:
        live_once(daemon)  # what is made once is there after this
        resources = Resources(daemon)
        before = resources.counts()
        for _ in range(LIVES):
            live_once(daemon)
        # a connection that was being closed may have been counted before
        daemon.until(lambda: all(count <= before[what] for what, count in resources.counts().items()))
        assert daemon.client.get("/v1/instances") == []
