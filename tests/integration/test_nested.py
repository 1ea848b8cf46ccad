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


def boots(monkeypatch, *answers):
    """Let nested.boot answer so; what it was asked to run."""
    asked, left = [], list(answers)

    def boot(tmp, folder, disks, timeout):
        asked.append((folder / "nodes").read_text().split())
        return left.pop(0)

    monkeypatch.setattr(nested, "boot", boot)
    return asked


def ran(tmp, node, state="passed"):
    nested.report(tmp / "results", node, state, "detail", 1.5)
    text = (tmp / "results").read_text()
    (tmp / "results").unlink()
    return text


def test_only_tests_without_a_result_get_a_second_host(tmp_path, monkeypatch):
    first = ran(tmp_path, "a.py::good") + ran(tmp_path, "a.py::bad", "failed") + ran(tmp_path, "a.py::torn")[:20]
    asked = boots(monkeypatch, (None, "died", first), (0, "", ran(tmp_path, "a.py::torn")))
    outcomes = nested.run_tests(tmp_path, ["a.py::good", "a.py::bad", "a.py::torn"], [], [], 60)
    assert asked == [["a.py::good", "a.py::bad", "a.py::torn"], ["a.py::torn"]]
    assert {node: outcome.state for node, outcome in outcomes.items()} == \
        {"a.py::good": "passed", "a.py::bad": "failed", "a.py::torn": "passed"}


def test_a_second_host_that_dies_is_a_failure(tmp_path, monkeypatch):
    boots(monkeypatch, (None, "", ""), (None, "", ""))
    outcome = nested.run_tests(tmp_path, ["a.py::test"], [], [], 60)["a.py::test"]
    assert outcome.state == "failed" and "second nested host: status None" in outcome.detail
