"""Other code than 64-bit Linux programs: a 32-bit program, and a kernel that is not Linux."""
import hashlib

from guests import busybox, finish
from images import image
from vmm import Vmm


def test_32_bit_static_program(engine, tmp):
    files = {"bin/busybox32": (image("busybox-i386") / "busybox-i386").read_bytes()}
    script = """
        export PATH=/bin
        busybox32 echo "32-bit says $(busybox32 expr 6 '*' 7)"
        busybox32 seq 1 2000 | busybox32 md5sum
        busybox32 sh -c 'busybox32 sleep 0; busybox32 kill -l | busybox32 head -1; (exit 3); echo status $?'
        busybox32 head -c 300000 /dev/urandom >/tmp/r; busybox32 gzip -c /tmp/r | busybox32 gunzip | busybox32 cmp - /tmp/r && echo SAME
    """
    expected = hashlib.md5("".join(f"{i}\n" for i in range(1, 2001)).encode()).hexdigest()
    with busybox(engine, tmp, script=script, files=files) as vmm:
        text = finish(vmm)
    for part in ("32-bit says 42", expected, "status 3", "SAME"):
        assert part in text, text


def test_memtest86_reaches_its_screen(engine, tmp):
    with Vmm("--engine", engine, "--kernel", image("memtest") / "memtest.bin", "--cmdline", "console=ttyS0,115200 nosmp",
             "--memory", "64M", "--console", "stdio") as vmm:
        vmm.wait_for(r"Memtest86\+ v6", 120)
        vmm.wait_for(r"Memory  : +\d+MB", 120)
