"""polder-img serve and NBD names, with the clients and servers that others wrote: libnbd, qemu, nbdkit, fio."""
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from vmm import TOP

nbd = pytest.importorskip("nbd", reason="python3-libnbd is not installed")
POLDER_IMG = TOP / "build/bin/polder-img"
SIZE = 8 << 20
OPTION, REPLY, REQUEST = 0x49484156454F5054, 0x3E889045565A9, 0x25609513


def run(*argv, status=0, timeout=60):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == status, f"{argv}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def wait_for_socket(path, process):
    for _ in range(400):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
            return
        assert process.poll() is None, "the server ended"
        time.sleep(0.025)
    raise AssertionError("the server does not listen")


def wait_until_larger(path, size, process):
    while process.poll() is None and not (path.exists() and path.stat().st_blocks * 512 > size):
        time.sleep(0.002)


def survives(handle, offset):
    """An I/O error or data: the server is there, and answers."""
    for command in (lambda: handle.pread(65536, offset), lambda: handle.pwrite(b"x" * 65536, offset), lambda: handle.zero(65536, offset),
                    lambda: handle.flush()):
        try:
            command()
        except nbd.Error as error:
            assert error.errno in ("EIO", "ENOSPC"), error


class Server:
    """polder-img serve on a unix socket; ends with SIGTERM and must then exit 0 and remove its socket."""

    def __init__(self, folder, *argv, program=None):
        self.path = folder / "nbd.sock"
        self.argv = program or [POLDER_IMG, "serve", "--socket", self.path, *argv]
        self.ours = program is None
        self.start()

    def start(self):
        self.process = subprocess.Popen([str(a) for a in self.argv])
        wait_for_socket(self.path, self.process)

    def kill(self):
        self.process.kill()
        self.process.wait()
        for _ in range(200):  # io_uring may keep the listening socket for a moment
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.path))
                time.sleep(0.025)
                continue
            return

    def stop(self):
        self.process.terminate()
        status = self.process.wait(timeout=30)
        if self.ours:
            assert status == 0 and not self.path.exists()

    def uri(self, export="", scheme="nbd+unix", more=""):
        return f"{scheme}:///{export}?socket={self.path}{more}"

    def connect(self, export="", flags=(), structured=True):
        handle = nbd.NBD()
        handle.set_request_structured_replies(structured)
        handle.add_meta_context("base:allocation")
        for context in flags:
            handle.add_meta_context(context)
        handle.set_strict_mode(0)
        handle.connect_uri(self.uri(export))
        return handle

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.stop() if kind is None else self.kill()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder, kind="qcow2", name="disk"):
    data = random.Random(7).randbytes(SIZE // 2) + bytes(SIZE // 2)
    raw = folder / f"{name}.raw"
    raw.write_bytes(data)
    if kind == "raw":
        return raw, bytearray(data)
    image = folder / f"{name}.qcow2"
    run(POLDER_IMG, "convert", "-O", "qcow2", raw, image)
    return image, bytearray(data)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_every_command(folder, kind):
    image, data = make(folder, kind)
    with Server(folder, image) as server:
        h = server.connect(image.name)
        assert h.get_size() == SIZE and h.can_multi_conn() and h.can_df() and h.can_fast_zero() and h.can_cache()
        assert h.pread(65536, 4096) == data[4096:4096 + 65536]
        assert h.pread(512, SIZE - 512, nbd.CMD_FLAG_DF) == data[-512:]
        h.pwrite(b"x" * 1536, 512)
        h.pwrite(b"y" * 4096, SIZE - 4096, nbd.CMD_FLAG_FUA)
        data[512:2048], data[-4096:] = b"x" * 1536, b"y" * 4096
        h.zero(65536, 1 << 20)
        h.zero(65536, 2 << 20, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
        h.zero(1 << 20, 3 << 20, nbd.CMD_FLAG_FAST_ZERO)
        for at, length in ((1 << 20, 65536), (2 << 20, 65536), (3 << 20, 1 << 20)):
            data[at:at + length] = bytes(length)
        h.trim(65536, 5 << 20)
        h.cache(1 << 20, 0)
        h.flush()
        extents = []
        h.block_status(SIZE, 0, lambda context, offset, entries, error: extents.extend(entries))
        assert sum(extents[::2]) == SIZE and extents[1] == 0 and 3 in extents[1::2]
        assert h.pread(SIZE, 0) == data
        h.shutdown()
    assert run(POLDER_IMG, "convert", image, "back.raw") == "" and (folder / "back.raw").read_bytes() == data
    if kind == "qcow2":
        run("qemu-img", "check", image)


@pytest.mark.parametrize("kind,options", [("luks", []), ("qcow2", ["-o", "data_file=x.raw,data_file_raw=on"]),
                                          ("qcow2", ["-b", "base.raw", "-F", "raw", "-o", "compat=0.10"])])
def test_zeroes_that_must_be_written_are_not_fast(folder, kind, options):
    (folder / "key").write_bytes(b"secret")
    (folder / "base.raw").write_bytes(b"b" * SIZE)
    keys = ["--key", "key"] if kind == "luks" else []
    run(POLDER_IMG, "create", "-f", kind, *keys, *options, "image", SIZE)
    with Server(folder, "-f", kind, *keys, "image") as server:
        h = server.connect("image")
        h.pwrite(b"x" * (1 << 20), 0)
        with pytest.raises(nbd.Error) as error:
            h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert error.value.errno == "ENOTSUP" and h.pread(1 << 20, 0) == b"x" * (1 << 20)
        h.zero(1 << 20, 0)
        assert h.pread(1 << 20, 0) == bytes(1 << 20)
        h.shutdown()


def test_what_is_known_to_be_zero_goes_as_a_hole(folder):
    image, _ = make(folder, name="top")
    run(POLDER_IMG, "create", "-f", "qcow2", "-b", image, "-F", "qcow2", "overlay.qcow2", str(SIZE + (1 << 20)))
    with Server(folder, folder / "overlay.qcow2") as server:
        h = server.connect("overlay.qcow2")

        def kinds(length, offset):
            found = []
            h.pread_structured(length, offset, lambda _data, at, kind, error: found.append((at, kind)))
            return found

        h.zero(65536, 0)
        assert kinds(4096, 0) == [(0, nbd.READ_HOLE)]
        assert kinds(65536, SIZE) == [(SIZE, nbd.READ_HOLE)]  # behind the backing image
        assert kinds(1 << 20, SIZE - (1 << 20)) == [(SIZE - (1 << 20), nbd.READ_HOLE)]  # not in the backing image either
        assert kinds(65536, 65536) == [(65536, nbd.READ_DATA)]
        assert kinds(131072, 0) == [(0, nbd.READ_DATA)]  # half of it
        h.pwrite(bytes(4096), SIZE)
        assert kinds(4096, SIZE) == [(SIZE, nbd.READ_DATA)]
        h.shutdown()
        simple = server.connect("overlay.qcow2", structured=False)
        assert simple.pread(4096, 0) == bytes(4096)
        simple.shutdown()


def test_bad_requests_get_errors_and_the_connection_lives(folder):
    image, data = make(folder)
    with Server(folder, image) as server:
        h = server.connect()
        for call, code in [(lambda: h.pread(512, SIZE), "EINVAL"), (lambda: h.pread(512, 3), "EINVAL"),
                           (lambda: h.pwrite(b"x" * 512, SIZE), "ENOSPC"), (lambda: h.pwrite(b"x" * 100, 512), "EINVAL"),
                           (lambda: h.zero(1 << 30, 0), "ENOSPC"), (lambda: h.trim(512, 1 << 62), "ENOSPC"),
                           (lambda: h.pread(512, 0, nbd.CMD_FLAG_REQ_ONE), "EINVAL")]:
            with pytest.raises(nbd.Error) as error:
                call()
            assert error.value.errno == code
        assert h.pread(512, 0) == data[:512]
        h.shutdown()
    with Server(folder, "--read-only", image) as server:
        h = server.connect()
        assert h.is_read_only()
        with pytest.raises(nbd.Error) as error:
            h.pwrite(b"x" * 512, 0)
        assert error.value.errno == "EPERM"
        h.shutdown()


# ---- the protocol by hand ----

def option(number, data=b""):
    return struct.pack(">QII", OPTION, number, len(data)) + data


def request(kind, offset=0, length=0, flags=0, data=b"", cookie=5, magic=REQUEST):
    return struct.pack(">IHHQQI", magic, flags, kind, cookie, offset, length) + data


class Raw:
    def __init__(self, server):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(20)
        self.s.connect(str(server.path))
        magic, again, flags = struct.unpack(">QQH", self.get(18))
        assert (magic, again, flags) == (0x4E42444D41474943, OPTION, 3)

    def get(self, n):
        data = b""
        while len(data) < n:
            got = self.s.recv(n - len(data))
            if not got:
                raise EOFError
            data += got
        return data

    def reply(self):
        magic, number, kind, length = struct.unpack(">QIII", self.get(20))
        assert magic == REPLY
        return number, kind, self.get(length)

    def error(self, cookie=5):
        magic, code, got = struct.unpack(">IIQ", self.get(16))
        assert magic == 0x67446698 and got == cookie
        return code

    def is_closed(self):
        try:
            return self.s.recv(1) == b""
        except ConnectionError:
            return True


def test_bytes_one_by_one(folder):
    image, data = make(folder)
    with Server(folder, image) as server:
        raw = Raw(server)
        for byte in struct.pack(">I", 3) + option(1, image.name.encode()) + request(0, 512, 512) + request(1, 0, 512, data=b"z" * 512):
            raw.s.sendall(bytes([byte]))
        assert struct.unpack(">Q", raw.get(10)[:8])[0] == SIZE
        assert raw.error() == 0 and raw.get(512) == data[512:1024]
        assert raw.error() == 0
        raw.s.sendall(request(0, 0, 512) + request(2))
        assert raw.error() == 0 and raw.get(512) == b"z" * 512
        assert raw.is_closed()


def test_unknown_options_and_commands(folder):
    image, _ = make(folder)
    with Server(folder, image) as server:
        raw = Raw(server)
        raw.s.sendall(struct.pack(">I", 3) + option(77, b"abc") + option(6, b"z" * 20000) + option(6, b"\0\0\0\7wrong") + option(5) +
                   option(7, struct.pack(">I", 4) + b"nope" + b"\0\0") + option(9, b"\0" * 8) + option(3, b"x"))
        for number, kind in [(77, 0x80000001), (6, 0x80000009), (6, 0x80000003), (5, 0x80000002), (7, 0x80000006), (9, 0x80000003),
                             (3, 0x80000003)]:
            assert raw.reply()[:2] == (number, kind)
        raw.s.sendall(option(7, b"\0" * 6))
        while raw.reply()[1] != 1:
            pass
        raw.s.sendall(request(99) + request(0, 0, 64 << 20) + request(1, 0, 33 << 20, data=bytes(33 << 20)) + request(7, 0, 512) +
                   request(0, 0, 0) + request(3))
        assert [raw.error() for _ in range(6)] == [22, 75, 75, 22, 0, 0]


@pytest.mark.parametrize("wrong", [struct.pack(">I", 1 << 20), struct.pack(">I", 3) + b"x" * 16,
                                   struct.pack(">I", 3) + option(1, b"nope"),
                                   struct.pack(">I", 3) + option(7, b"\0" * 6) + request(0, magic=1)])
def test_nonsense_ends_the_connection_only(folder, wrong):
    image, data = make(folder)
    with Server(folder, image) as server:
        raw = Raw(server)
        raw.s.sendall(wrong)
        with contextlib.suppress(EOFError, ConnectionError):
            raw.get(1 << 20)
        assert raw.is_closed()
        half = Raw(server)
        half.s.sendall(struct.pack(">I", 3) + option(7, b"\0" * 6) + request(1, 0, 1 << 20, data=b"x" * 1000))
        half.s.close()
        h = server.connect()
        assert h.pread(512, 0) == data[:512]
        h.shutdown()


def test_more_connections_than_there_is_room_for(folder):
    image, data = make(folder)
    with Server(folder, image) as server:
        crowd = [Raw(server) for _ in range(64)]
        late = socket.socket(socket.AF_UNIX)
        late.settimeout(1)
        late.connect(str(server.path))
        with pytest.raises(TimeoutError):
            late.recv(1)
        crowd.pop().s.close()
        late.settimeout(10)
        assert late.recv(8) == b"NBDMAGIC"
        late.close()
        for raw in crowd:
            raw.s.close()


# ---- other programs ----

def test_other_clients(folder):
    image, data = make(folder)
    second, _ = make(folder, "raw", "second")
    with Server(folder, image, second) as server:
        listed = json.loads(run("nbdinfo", "--json", "--list", server.uri()))
        assert [e["export-name"] for e in listed["exports"]] == ["disk.qcow2", "second.raw"]
        run("nbdcopy", server.uri("disk.qcow2"), "copy.raw")
        assert (folder / "copy.raw").read_bytes() == data
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri("disk.qcow2"), "disk.raw")
        out = run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 64k", "-c", "write -z -u 2M 64k", "-c", "discard 3M 64k",
                  "-c", "read -P 0x5a 1M 64k", "-c", "read -P 0 2M 64k", "-c", "flush", server.uri("disk.qcow2"))
        assert "failed" not in out
        run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 64k", "-c", "write -z -u 2M 64k", "-c", "discard 3M 64k", "disk.raw")
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri(), server.uri("second.raw"), status=1)
        run(POLDER_IMG, "compare", server.uri("disk.qcow2"), "disk.raw")


def test_fio_verifies(folder):
    image, _ = make(folder)
    if "nbd" not in run("fio", "--enghelp"):
        pytest.skip("this fio has no nbd engine")
    with Server(folder, image) as server:
        run("fio", "--name=t", "--ioengine=nbd", f"--uri={server.uri()}", "--rw=randwrite", "--bs=4k", "--iodepth=32", f"--size={SIZE}",
            "--verify=crc32c", "--do_verify=1")
    run("qemu-img", "check", image)


# Blocks of all sizes are read back soon and at the end, beside writes that allocate clusters and make the file longer.
@pytest.mark.parametrize("options", ["cluster_size=64k", "cluster_size=4k", "cluster_size=512", "cluster_size=64k,extended_l2=on",
                                     "cluster_size=2M", "cluster_size=64k,lazy_refcounts=on,refcount_bits=64"])
def test_fio_writes_into_thin_images(folder, options):
    size = 16 << 20
    if "nbd" not in run("fio", "--enghelp"):
        pytest.skip("this fio has no nbd engine")
    run(POLDER_IMG, "create", "-f", "qcow2", "-o", options, "thin.qcow2", size)
    common = ["--ioengine=nbd", f"--size={size}", "--bsrange=4k-64k", "--iodepth=32", "--randrepeat=0", "--verify=crc32c"]
    with Server(folder, "-f", "qcow2", "thin.qcow2") as server:
        out = run("fio", *common, f"--uri={server.uri()}", "--name=backlog", "--rw=randrw", "--verify_backlog=64", "--loops=2")
        assert "err= 0" in out
        out = run("fio", *common, f"--uri={server.uri()}", "--name=overwrite", "--rw=randwrite", "--do_verify=1")
        assert "err= 0" in out
    run("qemu-img", "check", "thin.qcow2")


def test_several_clients_and_one_flush(folder):
    image, data = make(folder)
    with Server(folder, image) as server:
        handles = [server.connect() for _ in range(4)]
        for i, h in enumerate(handles):
            h.pwrite(bytes([i + 1]) * 4096, i * (1 << 20))
        handles[0].flush()
        assert [h.pread(4096, 3 << 20) for h in handles] == [b"\4" * 4096] * 4
        server.kill()
    for i in range(4):
        data[i << 20:(i << 20) + 4096] = bytes([i + 1]) * 4096
    run(POLDER_IMG, "convert", image, "back.raw")
    assert (folder / "back.raw").read_bytes() == data


def test_sigterm_under_load(folder):
    image, _ = make(folder)
    with Server(folder, image) as server:
        written, ended = [], threading.Event()

        def load(handle, number):
            with contextlib.suppress(nbd.Error):
                for i in range(1 << 20):
                    at = (i * 4 + number) % 1024 * 4096
                    value = (i + number) % 255 + 1
                    handle.pwrite(bytes([value]) * 4096, at)
                    written.append((at, value))
        threads = [threading.Thread(target=load, args=(server.connect(), n)) for n in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        server.stop()
        for thread in threads:
            thread.join()
        ended.set()
    run("qemu-img", "check", image)
    run(POLDER_IMG, "convert", image, "back.raw")
    back = (folder / "back.raw").read_bytes()
    last = dict(written)
    assert len(written) > 100
    wrong = [at for at, value in last.items() if back[at] != value]
    assert len(wrong) <= 4  # a write that was done and whose answer the client did not read


def test_snapshot(folder):
    image, data = make(folder)
    run(POLDER_IMG, "snapshot", "-c", "before", image)
    run("qemu-io", "-c", "write -P 9 0 1M", image)
    with Server(folder, "--snapshot", "before", image) as server:
        h = server.connect()
        assert h.is_read_only() and h.pread(SIZE, 0) == data
        h.shutdown()
    assert "no snapshot 'nope'" in run(POLDER_IMG, "serve", "--socket", "x", "--snapshot", "nope", image, status=1)


def test_dirty_bitmap(folder):
    image, _ = make(folder)
    run(POLDER_IMG, "bitmap", "--add", image, "b0")
    run("qemu-io", "-c", "write -P 9 1M 64k", image)
    with Server(folder, "--read-only", "--bitmap", "b0", image) as server:
        h = server.connect("", ["qemu:dirty-bitmap:b0"])
        seen = {}
        h.block_status(SIZE, 0, lambda context, offset, entries, error: seen.setdefault(context, list(entries)))
        assert seen["qemu:dirty-bitmap:b0"] == [1 << 20, 0, 65536, 1, SIZE - (1 << 20) - 65536, 0]
        h.shutdown()
    assert "no dirty bitmap 'b1'" in run(POLDER_IMG, "serve", "--socket", "x", "--bitmap", "b1", image, status=1)
    assert "no dirty bitmap 'b0'" in run(POLDER_IMG, "serve", "--socket", "x", "--bitmap", "b0", "disk.raw", status=1)


# ---- TLS ----

def make_certificates(folder):
    for name in ("server", "other"):
        where = folder / name
        where.mkdir()
        (where / "ca.info").write_text(f"cn = {name} CA\nca\ncert_signing_key\n")
        run("certtool", "--generate-privkey", "--outfile", where / "ca-key.pem")
        run("certtool", "--generate-self-signed", "--load-privkey", where / "ca-key.pem", "--template", where / "ca.info",
            "--outfile", where / "ca-cert.pem")
        for role in ("server", "client"):
            (where / "info").write_text(f"cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_{role}\nencryption_key\n"
                                        "signing_key\n")
            run("certtool", "--generate-privkey", "--outfile", where / f"{role}-key.pem")
            run("certtool", "--generate-certificate", "--load-ca-certificate", where / "ca-cert.pem", "--load-ca-privkey",
                where / "ca-key.pem", "--load-privkey", where / f"{role}-key.pem", "--template", where / "info", "--outfile",
                where / f"{role}-cert.pem")


@pytest.mark.skipif(not shutil.which("certtool"), reason="gnutls-bin is not installed")
def test_tls_by_certificates(folder):
    image, data = make(folder)
    make_certificates(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([POLDER_IMG, "serve", "--port", str(port), "--tls-certs", folder / "server", image])
    try:
        uri = f"nbds://localhost:{port}/?tls-certificates={{}}"
        time.sleep(0.5)
        run("nbdcopy", uri.format(folder / "server"), "copy.raw")
        assert (folder / "copy.raw").read_bytes() == data
        run(POLDER_IMG, "compare", uri.format(folder / "server"), "disk.raw")
        run("nbdinfo", uri.format(folder / "other"), status=1)
        run("nbdinfo", f"nbd://localhost:{port}", status=1)
        run("qemu-img", "info", "--object", f"tls-creds-x509,id=t,dir={folder / 'server'},endpoint=client",
            "--image-opts", f"driver=nbd,host=localhost,port={port},tls-creds=t")
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


@pytest.mark.skipif(not shutil.which("psktool"), reason="gnutls-bin is not installed")
def test_tls_by_keys(folder):
    image, data = make(folder)
    for name in ("keys", "wrong"):
        run("psktool", "-u", "alice", "-p", folder / f"{name}.psk")
    with Server(folder, "--tls-psk", folder / "keys.psk", image) as server:
        good = server.uri("", "nbds+unix", f"&tls-psk-file={folder}/keys.psk").replace("unix:///", "unix://alice@/")
        run("nbdcopy", good, "copy.raw")
        assert (folder / "copy.raw").read_bytes() == data
        run("nbdcopy", "disk.raw", good)
        run(POLDER_IMG, "compare", good, "disk.raw")
        run("nbdinfo", good.replace("keys.psk", "wrong.psk"), status=1)
        run("nbdinfo", good.replace("alice", "bob"), status=1)
        run("nbdinfo", server.uri(), status=1)
        run(POLDER_IMG, "info", server.uri(), status=1)


# ---- our client ----

@pytest.mark.parametrize("program,options", [("qemu-nbd", []), ("nbdkit", []), ("nbdkit", ["--filter=nozero"])])
def test_our_client_with_other_servers(folder, program, options):
    image, data = make(folder, "raw")
    sock = folder / "nbd.sock"
    argv = {"qemu-nbd": ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", sock, image],
            "nbdkit": ["nbdkit", "-f", "-U", sock, *options, "file", image]}
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    with Server(folder, program=argv[program]) as server:
        run(POLDER_IMG, "convert", "-O", "qcow2", server.uri(), "copy.qcow2")
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "copy.qcow2", image)
        with open(folder / "new.raw", "wb") as new:  # with a hole in front
            new.seek(SIZE // 2)
            new.write(data[:SIZE // 2][::-1])
        run(POLDER_IMG, "convert", "new.raw", server.uri())
        run(POLDER_IMG, "compare", server.uri(), "new.raw")
        run(POLDER_IMG, "map", server.uri())
    assert image.read_bytes() == bytes(data[::-1])


def test_zeroes_that_another_server_may_write_are_not_fast(folder):
    if not shutil.which("nbdkit"):
        pytest.skip("nbdkit is not installed")
    (folder / "inner").mkdir()
    argv = ["nbdkit", "-f", "-U", folder / "inner/nbd.sock", "--filter=nozero", "memory", str(SIZE), "zeromode=emulate",
            "fastzeromode=none"]
    with Server(folder / "inner", program=argv) as inner, Server(folder, "-f", "raw", inner.uri()) as server:
        h = server.connect("")
        with pytest.raises(nbd.Error) as error:
            h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert error.value.errno == "ENOTSUP"
        h.zero(1 << 20, 0)
        h.shutdown()


def test_reconnects(folder):
    size = 256 << 20
    raw = folder / "big.raw"
    raw.write_bytes(random.Random(3).randbytes(1 << 20) * (size >> 20))
    with Server(folder, "--read-only", raw) as server:
        client = subprocess.Popen([POLDER_IMG, "convert", server.uri(), "copy.raw"])
        for grown in (10, 60, 120):
            wait_until_larger(folder / "copy.raw", grown << 20, client)
            server.kill()
            server.start()
        assert client.wait(timeout=60) == 0
    run("cmp", raw, "copy.raw")


def test_lost_writes_are_told(folder):
    """A flush behind a reconnect cannot vouch for what a dead server had in its memory."""
    image, _ = make(folder, "qcow2")
    (folder / "new.raw").write_bytes(os.urandom(SIZE) * 32)
    run(POLDER_IMG, "create", "-f", "qcow2", "big.qcow2", SIZE * 32)
    with Server(folder, "big.qcow2") as server:
        client = subprocess.Popen([POLDER_IMG, "convert", "new.raw", server.uri()], stderr=subprocess.PIPE, text=True)
        wait_until_larger(folder / "big.qcow2", 20 << 20, client)
        if client.poll() is not None:
            pytest.skip("the host was too fast: nothing was in flight")
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        server.start()
        assert client.wait(timeout=60) == 1
        assert len(client.stderr.read().splitlines()) == 1


def test_a_name_in_an_image_is_no_uri(folder):
    image, _ = make(folder)
    with Server(folder, image) as server:
        run("qemu-img", "create", "-f", "qcow2", "-u", "-b", server.uri(), "-F", "raw", "evil.qcow2", SIZE)
        assert len(run(POLDER_IMG, "compare", "evil.qcow2", "disk.raw", status=2).splitlines()) == 1


@pytest.mark.parametrize("argv, says", [
    (["--socket", "s", "--port", "1"], "not both"), (["--tls-psk", "nope"], "nope"), (["--tls-certs", "nope"], "ca-cert.pem"),
    (["--bind", "localhost"], "numeric"), (["--export", "a", "disk.raw"], "one image")])
def test_wrong_options(folder, argv, says):
    image, _ = make(folder)
    out = run(POLDER_IMG, "serve", *argv, image, status=1)
    assert says in out and len(out.splitlines()) == 1


def test_socket_of_another_server_and_left_over(folder):
    image, _ = make(folder)
    other, _ = make(folder, "raw", "other")
    with Server(folder, image) as server:
        assert "in use" in run(POLDER_IMG, "serve", "--socket", server.path, other, status=1)
        server.kill()
        server.start()
    (folder / "file").write_text("x")
    assert "another file" in run(POLDER_IMG, "serve", "--socket", "file", other, status=1)
    assert (folder / "file").read_text() == "x"


@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("left", [0, 70000, SIZE // 2])
def test_a_file_made_shorter_under_the_server(tmp_path, form, left):
    """Reads of what is gone fail; nothing hangs, and what is written afterwards to a raw file is there."""
    image = tmp_path / f"disk.{form}"
    (tmp_path / "data.raw").write_bytes(random.Random(1).randbytes(SIZE))
    run(POLDER_IMG, "convert", "-O", form, tmp_path / "data.raw", image)
    server = Server(tmp_path, "-f", form, image)
    handle = nbd.NBD()
    handle.connect_unix(str(server.path))
    os.truncate(image, left)
    with pytest.raises(nbd.Error):
        handle.pread(65536, SIZE - 4 * 65536)
    for offset in (SIZE - 65536, left // 65536 * 65536, 0):
        survives(handle, offset)
    if form == "raw":
        assert handle.pread(65536, SIZE - 65536) == bytes(65536) and handle.pread(65536, 0) == bytes(65536)
    handle.shutdown()
    server.stop()
