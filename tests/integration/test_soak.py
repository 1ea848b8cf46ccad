"""A long mix of all that a translator finds hard: processes, signals, faults, remapped memory, context switches, sockets.

The mix is drawn from a seed, which is printed; POLDER_SOAK_SEED runs it again. POLDER_SOAK_S: seconds, 60 by default.
"""
import os
import random
import re
import time

import pytest

from guests import debian, finish

SECONDS = int(os.environ.get("POLDER_SOAK_S", "60"))
SAMPLE_S = 2
PLATEAU_KIB = 4096  # more than this may not be added in the second half
MEMORY_MIB = 1024
STRESSORS = ("cpu", "vm", "fork", "switch", "mmap", "signal", "futex", "cache", "sock")
# What the kernel says when it finds itself or a process broken.
TROUBLE = "BUG|WARNING:|Oops|segfault|general protection|trap invalid|trap divide|soft lockup|rcu.*stall|hung task|Out of memory"


def mix(seed):
    """Arguments of stress-ng: one or two workers of each kind, in any order."""
    draw = random.Random(seed)
    words = [f"--{name} {draw.choice((1, 1, 2))}" for name in draw.sample(STRESSORS, len(STRESSORS))]
    return " ".join([*words, f"--vm-bytes {draw.choice((16, 64, 128))}M --mmap-bytes {draw.choice((8, 32, 64))}M"])


def script(seed):
    return f"""ip link set lo up || exit 97
stress-ng --seed {seed} --verify --metrics-brief --timeout {SECONDS} {mix(seed)}
status=$?
echo SOAK-END
dmesg >/run/dmesg && grep -q 'Linux version' /run/dmesg || exit 98
grep -E '{TROUBLE}' /run/dmesg && exit 99
exit $status
"""


def watch(vmm, seconds):
    """(second, KiB of the program itself) from now until the guest's work is over."""
    samples, start = [], time.monotonic()
    while "SOAK-END" not in vmm.text and vmm.process.poll() is None and time.monotonic() < start + seconds:
        samples.append((time.monotonic() - start, vmm.own_kib(MEMORY_MIB)))
        time.sleep(SAMPLE_S)
    return samples


def operations(text):
    """{stressor: operations} of stress-ng's summary."""
    return {name: int(count) for name, count in re.findall(r"metrc: \[\d+\] (\w+) +(\d+) +\d+\.\d\d ", text)}


@pytest.mark.parametrize("cpus", [1, 2])
def test_soak(tmp, capsys, cpus):
    seed = int(os.environ.get("POLDER_SOAK_SEED", 0)) or random.SystemRandom().randrange(1, 2**32)
    with capsys.disabled():
        print(f"\nPOLDER_SOAK_SEED={seed} {mix(seed)}")
    with debian("jit", tmp, name="debian-full", script=script(seed), cpus=cpus, memory=f"{MEMORY_MIB}M") as vmm:
        vmm.wait_for("dispatching hogs", 120)
        samples = watch(vmm, 3 * SECONDS + 60)
        text = finish(vmm, 120)
    assert "successful run completed" in text and not re.search("^stress-ng: (fail|error)", text, re.M), vmm.describe()
    done = operations(text)
    assert sorted(done) == sorted(STRESSORS) and all(done.values()), done
    half = [kib for second, kib in samples if second >= SECONDS / 2]
    assert len(half) >= 2, samples
    assert max(half) - half[0] < PLATEAU_KIB, f"memory of the program grows: {samples}"
