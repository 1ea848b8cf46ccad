"""The bare-metal guests of tests/guest on engine kvm, all in one nested host; on jit `meson test` runs them."""
import re
import shutil

import pytest

import nested
import vmm
from conftest import kvm_mode

GUESTS = vmm.TOP / "tests/guest"


def guest_images():
    """The built guests: beside the program under test, in its build directory."""
    return sorted(p for p in (vmm.BINARY.parents[1] / "tests/guest").glob("guest-*") if p.is_file())


def test_bare_metal_guests_on_kvm(tmp):
    if kvm_mode() != "nested":
        pytest.skip("takes minutes in a nested host; POLDER_KVM=nested runs it, or here: tests/guest/run --engine kvm")
    if why := nested.missing():
        pytest.skip(why)
    images = guest_images()
    assert images, "the guests are not built"
    folder = tmp / "work"
    (folder / "build/tests/guest").mkdir(parents=True)
    (folder / "guest").mkdir()
    nested.add_program(folder, vmm.BINARY)
    for image in images:
        shutil.copy(image, folder / "build/tests/guest")
    for name in ("run", "guests.cfg"):
        shutil.copy(GUESTS / name, folder / "guest")
    script = folder / "run"
    script.write_text(f"#!/bin/sh\npython3 guest/run --build /work/build --vmm /work/{vmm.BINARY.name} --engine kvm --tcg\n")
    script.chmod(0o755)
    status, text, _ = nested.boot(tmp, folder, cpus=4, timeout=900)
    output = nested.output_of(text)
    counts = re.search(r"(\d+) passed, (\d+) failed", output)
    assert status == 0 and counts and int(counts[1]) > 0 and counts[2] == "0", f"status {status}\n{output or vmm.tail(text, 60)}"
