"""The nested host itself: a CPU with SVM, a KVM that works, Python."""
import subprocess
import threading
import time

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


def boots(*answers):
    """What answers so in place of nested.boot, and a list of what it was asked to run."""
    asked, left = [], list(answers)

    def boot(tmp, folder, disks, timeout, stop):
        asked.append((folder / "nodes").read_text().split())
        return left.pop(0)

    return boot, asked


def ran(tmp, node, state="passed"):
    nested.report(tmp / "results", node, state, "detail", 1.5)
    text = (tmp / "results").read_text()
    (tmp / "results").unlink()
    return text


def test_failed_tests_have_a_second_host(tmp_path):
    nodes = ["a.py::good", "a.py::bad", "a.py::flaky", "a.py::torn", "a.py::behind"]
    first = ran(tmp_path, nodes[0]) + ran(tmp_path, nodes[1], "failed") + ran(tmp_path, nodes[2], "failed") + ran(tmp_path, nodes[3])[:20]
    second = ran(tmp_path, nodes[1], "failed") + "".join(ran(tmp_path, node) for node in nodes[2:])
    boot, asked = boots((None, "died", first), (0, "", second))
    outcomes = nested.run_tests(tmp_path, nodes, [], [], 60, boot=boot)
    assert asked == [nodes, nodes[1:]]
    assert [outcomes[node].state for node in nodes] == ["passed", "failed", "passed", "passed", "passed"]
    for node in nodes[2:4]:
        assert outcomes[node].detail.startswith("only the second time")
    assert "ended in it" in outcomes[nodes[3]].detail and "only" not in outcomes[nodes[4]].detail


def test_a_host_that_dies_costs_the_test_it_died_in(tmp_path):
    nodes = ["a.py::deadly", "a.py::behind"]
    boot, asked = boots((None, "", ""), (None, "", ""), (0, "", ran(tmp_path, nodes[1])))
    outcomes = nested.run_tests(tmp_path, nodes, [], [], 60, boot=boot)
    assert asked == [nodes, nodes, nodes[1:]]
    assert outcomes[nodes[0]].state == "failed" and "nested host ended in it: status None" in outcomes[nodes[0]].detail
    assert outcomes[nodes[1]].state == "passed"


def test_a_session_that_ends_ends_its_hosts(tmp_path):
    nodes, stop = ["a.py::never"], threading.Event()
    boot, asked = boots((None, "", ""))
    stop.set()
    outcomes = nested.run_tests(tmp_path, nodes, [], [], 60, stop, boot)
    assert asked == [] and outcomes[nodes[0]].state == "failed"
    with subprocess.Popen(["sleep", "60"]) as sleep:
        began = time.monotonic()
        nested.wait_for_end(sleep, [], 60, stop)
        assert time.monotonic() - began < 30 and sleep.poll() is None
        sleep.kill()
