"""The nested host itself: a CPU with SVM, a KVM that works, Python."""
import pytest

import nested


@pytest.mark.needs_no_vmm
def test_host_has_kvm(tmp_path):
    if why := nested.missing():
        pytest.skip(why)
    status, output = nested.run(tmp_path, """
        test -c /dev/kvm && test -c /dev/net/tun && grep -qw svm /proc/cpuinfo &&
        python3 -c 'import fcntl, os, pytest; print("api", fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE00))' &&
        cat greeting; exit 3
    """, {"greeting": b"hello\n"})
    assert (status, "api 12" in output, "hello" in output) == (3, True, True), output
