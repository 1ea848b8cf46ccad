"""Engines and nested hosts for the integration tests.

A test that takes `engine` is run for jit and for kvm. The kvm half runs right here where KVM is hardware
virtualization (or POLDER_KVM=direct), else (or POLDER_KVM=nested) in one nested host, which works beside the other tests
and whose outcomes are shown after them, one by one. POLDER_KVM=skip leaves it out. `-k jit` or `-k kvm` picks one engine.
"""
import os
import threading
import warnings
from pathlib import Path

import pytest

import nested
import vmm

NESTED_IMAGES = ["busybox", "debian", "debian-full", "busybox-i386", "memtest", "microvm"]
NESTED_PROGRAMS = ["vsock-echo"]
NESTED_TIMEOUT_S = int(os.environ.get("POLDER_NESTED_TIMEOUT", "2000"))


passed = {}  # tests that have passed, but for their teardown: seconds


def kvm_mode():
    mode = os.environ.get("POLDER_KVM", "auto")
    if mode != "auto":
        return mode
    words = set(Path("/proc/cpuinfo").read_text().split())
    return "direct" if {"vmx", "svm"} & words and os.access("/dev/kvm", os.R_OK | os.W_OK) else "nested"


def pytest_configure(config):
    config.addinivalue_line("markers", "not_nested(reason): the kvm half is skipped in a nested host")
    config.addinivalue_line("markers", "needs_no_vmm: does not run polder-vmm")


def pytest_generate_tests(metafunc):
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", ["kvm"] if os.environ.get("POLDER_KVM") == "direct" and
                             os.environ.get("POLDER_IMAGES") else ["jit", "kvm"])


class NestedRun(threading.Thread):
    """All tests of a session that belong into the nested host: a thread, for the host takes one CPU and waits for nobody."""

    def __init__(self, config, nodes):
        super().__init__(name="nested host")
        self.nodes, self.over, self.outcomes = nodes, threading.Event(), {}
        self.tmp = config._tmp_path_factory.mktemp("nested")  # here: pytest makes its folders for one thread alone
        self.start()

    def run(self):
        try:
            self.outcomes = self.run_all()
        except Exception as error:  # each test says it
            self.outcomes = {node: nested.Outcome("failed", f"nested host: {error!r}") for node in self.nodes}

    def run_all(self):
        if why := nested.missing():
            return {node: nested.Outcome("skipped", why) for node in self.nodes}
        if not vmm.BINARY.exists():
            return {node: nested.Outcome("failed", f"{vmm.BINARY} is missing") for node in self.nodes}
        return nested.run_tests(self.tmp, self.nodes, NESTED_IMAGES, NESTED_PROGRAMS, NESTED_TIMEOUT_S, self.over)

    def stop(self):
        self.over.set()
        self.join()


class NestedItem(pytest.Item):
    """Stands for a test whose outcome comes from the nested host."""
    nested_run = None

    def runtest(self):
        NestedItem.nested_run.join()
        outcome = NestedItem.nested_run.outcomes[self.inner_node]
        self.user_properties.append(("nested_seconds", f"{outcome.seconds:.1f}"))
        if outcome.state == "skipped":
            pytest.skip(outcome.detail)
        if outcome.state == "failed":
            raise NestedFailure(outcome.detail)
        if outcome.detail:
            warnings.warn(pytest.PytestWarning(outcome.detail))

    def repr_failure(self, excinfo):
        return str(excinfo.value) if isinstance(excinfo.value, NestedFailure) else super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, None, self.name


class NestedFailure(Exception):
    pass


def pytest_collection_modifyitems(config, items):
    mode = kvm_mode()
    for index, item in enumerate(items):
        if getattr(item, "callspec", None) is None or item.callspec.params.get("engine") != "kvm":
            continue
        if mode == "skip":
            item.add_marker(pytest.mark.skip(reason="POLDER_KVM=skip"))
        elif mode == "nested" and (marker := item.get_closest_marker("not_nested")):
            item.add_marker(pytest.mark.skip(reason=f"not in a nested host: {marker.args[0]}"))
        elif mode == "nested" and not item.get_closest_marker("skip"):
            proxy = NestedItem.from_parent(item.parent, name=item.name)
            proxy.inner_node = f"{item.path.name}::{item.name}"
            proxy.add_marker(pytest.mark.timeout(0))  # the first one waits for all; nested.py has limits of its own
            items[index] = proxy
    items.sort(key=lambda item: isinstance(item, NestedItem))


def pytest_collection_finish(session):
    nodes = [i.inner_node for i in session.items if isinstance(i, NestedItem)]
    if nodes and not session.config.option.collectonly:
        NestedItem.nested_run = NestedRun(session.config, nodes)


def pytest_sessionfinish(session):
    if NestedItem.nested_run:
        NestedItem.nested_run.stop()


def pytest_runtest_setup(item):
    if isinstance(item, NestedItem) or item.get_closest_marker("needs_no_vmm"):
        return
    if not vmm.BINARY.exists():
        pytest.fail(f"{vmm.BINARY} is missing; run 'make'", pytrace=False)


def pytest_runtest_logreport(report):
    """In a nested host: tell the outside at once."""
    file = os.environ.get("POLDER_RESULTS")
    if not file:
        return
    if report.when == "call" and report.passed:
        passed[report.nodeid] = report.duration
    elif report.skipped:
        nested.report(file, report.nodeid, "skipped", report.longrepr[2].removeprefix("Skipped: "), report.duration)
    elif report.failed:
        passed.pop(report.nodeid, None)
        nested.report(file, report.nodeid, "failed", report.longreprtext, report.duration)
    elif report.when == "teardown" and report.nodeid in passed:
        nested.report(file, report.nodeid, "passed", "", passed[report.nodeid])


@pytest.fixture
def tmp(tmp_path):
    """A folder for the test, emptied of big files after it."""
    yield tmp_path
    for file in tmp_path.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_size > 2**20:
            file.unlink()
