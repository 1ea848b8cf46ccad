"""Engines and nested hosts for the integration tests.

A test that takes `engine` is run for jit and for kvm. The kvm half runs right here where KVM is hardware
virtualization (or POLDER_KVM=direct), else in one nested host, whose outcomes are shown one by one: those of
NESTED_ALWAYS, or all with POLDER_KVM=nested, which takes the better part of an hour. POLDER_KVM=skip leaves them out.
`-k jit` or `-k kvm` picks one engine.
"""
import os
import subprocess
from pathlib import Path

import pytest

import nested
import vmm

NESTED_IMAGES = ["busybox", "debian", "debian-full", "busybox-i386", "memtest"]
NESTED_PROGRAMS = ["vsock-echo"]
NESTED_ALWAYS = "test_boots_to_init"
NESTED_TIMEOUT_S = int(os.environ.get("POLDER_NESTED_TIMEOUT", "2700"))


def kvm_mode():
    mode = os.environ.get("POLDER_KVM", "auto")
    if mode != "auto":
        return mode
    words = set(Path("/proc/cpuinfo").read_text().split())
    return "direct" if {"vmx", "svm"} & words and os.access("/dev/kvm", os.R_OK | os.W_OK) else "nested-boot"


def pytest_configure(config):
    config.addinivalue_line("markers", "not_nested: too heavy or impossible in a nested host; the kvm half is skipped there")
    config.addinivalue_line("markers", "needs_no_vmm: does not run polder-vmm")


def pytest_generate_tests(metafunc):
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", ["kvm"] if os.environ.get("POLDER_KVM") == "direct" and
                             os.environ.get("POLDER_IMAGES") else ["jit", "kvm"])


class NestedItem(pytest.Item):
    """Stands for a test whose outcome comes from the nested host."""
    inner = []      # all of them, known after collection
    outcomes = None

    def runtest(self):
        if NestedItem.outcomes is None:
            NestedItem.outcomes = self.run_all()
        outcome = NestedItem.outcomes[self.inner_node]
        if outcome.state == "skipped":
            pytest.skip(outcome.detail)
        if outcome.state == "failed":
            raise NestedFailure(outcome.detail)

    def run_all(self):
        if why := nested.missing():
            return {i.inner_node: nested.Outcome("skipped", why) for i in NestedItem.inner}
        if not vmm.BINARY.exists():
            return {i.inner_node: nested.Outcome("failed", f"{vmm.BINARY} is missing") for i in NestedItem.inner}
        tmp = self.config._tmp_path_factory.mktemp("nested")
        try:
            return nested.run_tests(tmp, [i.inner_node for i in NestedItem.inner], NESTED_IMAGES, NESTED_PROGRAMS, NESTED_TIMEOUT_S)
        except (OSError, subprocess.CalledProcessError) as error:
            return {i.inner_node: nested.Outcome("failed", f"nested host: {error}") for i in NestedItem.inner}

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
        elif mode == "nested-boot" and not item.name.startswith(NESTED_ALWAYS):
            item.add_marker(pytest.mark.skip(reason="takes minutes in a translated host; POLDER_KVM=nested runs it"))
        elif mode.startswith("nested") and item.get_closest_marker("not_nested"):
            item.add_marker(pytest.mark.skip(reason="too heavy for KVM in a translated host; runs where KVM is hardware"))
        elif mode.startswith("nested") and not item.get_closest_marker("skip"):
            proxy = NestedItem.from_parent(item.parent, name=item.name)
            proxy.inner_node = f"{item.path.name}::{item.name}"
            items[index] = proxy


def pytest_collection_finish(session):
    NestedItem.inner = [i for i in session.items if isinstance(i, NestedItem)]


def pytest_runtest_setup(item):
    if isinstance(item, NestedItem) or item.get_closest_marker("needs_no_vmm"):
        return
    if not vmm.BINARY.exists():
        pytest.fail(f"{vmm.BINARY} is missing; run 'make'", pytrace=False)


@pytest.fixture
def tmp(tmp_path):
    """A folder for the test, emptied of big files after it."""
    yield tmp_path
    for file in tmp_path.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_size > 2**20:
            file.unlink()
