"""Images from and to a real registry, with skopeo on the other side; broken lines and hostile servers between."""
import json
import os
import random
import subprocess
import threading
from pathlib import Path

import pytest

import registries
from registries import CuttingProxy, Layout, Registry, Server, TokenServer, skopeo, tar_layer

TOP = Path(__file__).resolve().parents[2]
TOOL = Path(os.environ.get("POLDER_IMAGE_TOOL", TOP / "build/tests/integration/image-tool"))
pytestmark = pytest.mark.needs_no_vmm


class Tool:
    """The image library, on a store of its own."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def start(self, *args, options=("--insecure",), **kwargs):
        return subprocess.Popen([TOOL, *options, self.folder, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                **kwargs)

    def call(self, *args, input=None, **kwargs):
        with self.start(*args, stdin=subprocess.PIPE, **kwargs) as process:
            try:
                out, errors = process.communicate(input, timeout=60)
            finally:
                process.kill()
        return process.returncode, out, errors.decode()

    def run(self, *args, **kwargs):
        status, out, errors = self.call(*args, **kwargs)
        assert status == 0, errors
        return out.decode().strip()

    def refuse(self, *args, says, **kwargs):
        status, _, errors = self.call(*args, **kwargs)
        assert status == 1, f"{args} was taken"
        assert says in errors and errors.count("\n") == 1, errors

    def inspect(self, ref):
        return json.loads(self.run("inspect", ref))

    def blobs(self):
        return sorted(p.name for p in (self.folder / "blobs/sha256").iterdir())

    def is_empty(self):
        return not self.blobs() and not any(p for p in (self.folder / "tmp").rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A layout with "app" (3 layers, one of them twice), "big" (one of 8 MiB), "many" (an index), "arm" (arm64 only)."""
    rng = random.Random(1)
    layout = Layout(tmp_path_factory.mktemp("sources") / "layout")
    small = tar_layer({"etc/name": b"small"})
    layout.tag("app", layout.image([tar_layer({"a": rng.randbytes(300000)}), small, tar_layer({"b": rng.randbytes(70000)}), small]))
    layout.tag("big", layout.image([tar_layer({"big": rng.randbytes(8 << 20)})]))
    arm = layout.image([small], architecture="arm64")
    amd = layout.image([small, tar_layer({"amd": b"64"})])
    layout.tag("many", layout.index({"arm64": arm, "amd64": amd}))
    layout.tag("arm", layout.index({"arm64": arm}))
    layout.tag("arm-alone", arm)
    layout.amd = amd["digest"]
    return layout


@pytest.fixture(scope="module")
def registry(tmp_path_factory, sources):
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        for entry in sources.entries:
            name = entry["annotations"]["org.opencontainers.image.ref.name"]
            skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{sources.folder}:{name}", f"docker://{registry.name}/{name}:1")
        yield registry


@pytest.fixture
def tool(tmp_path):
    return Tool(tmp_path / "store")


def remote_digest(registry, name):
    return skopeo("inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{registry.name}/{name}").strip()


def source_digest(sources, name):
    return next(e["digest"] for e in sources.entries if e["annotations"]["org.opencontainers.image.ref.name"] == name)


# ---- both ways ----

def test_what_is_pulled_is_pushed_with_the_same_digest(registry, tool, sources):
    ref = f"{registry.name}/app:1"
    assert tool.run("pull", ref) == source_digest(sources, "app") == remote_digest(registry, "app:1")
    image = tool.inspect(ref)
    assert image["ref"] == ref and image["kind"] == "oci" and image["layer_count"] == 4
    assert image["config"]["cmd"] == ["sh"] and image["config"]["labels"] == ["a=b"]
    assert image["created_at"] == "2024-01-02T03:04:05Z"
    for blob in tool.blobs():
        assert registries.sha256((tool.folder / "blobs/sha256" / blob).read_bytes()) == "sha256:" + blob
    tool.run("push", ref, f"{registry.name}/copy/of/app:2")
    assert remote_digest(registry, "copy/of/app:2") == image["digest"]


@pytest.mark.parametrize("options", [["--format", "v2s2"], ["--dest-compress-format", "zstd"], ["--dest-decompress"]])
def test_forms_of_images(registry, tool, sources, tmp_path, options):
    name = f"form{len(options[-1])}"
    if options == ["--dest-decompress"]:
        skopeo("copy", *options, f"oci:{sources.folder}:app", f"dir:{tmp_path}/dir")
        skopeo("copy", "--dest-tls-verify=false", f"dir:{tmp_path}/dir", f"docker://{registry.name}/{name}:1")
    else:
        skopeo("copy", *options, "--dest-tls-verify=false", f"oci:{sources.folder}:app", f"docker://{registry.name}/{name}:1")
    digest = tool.run("pull", f"{registry.name}/{name}:1")
    assert digest == remote_digest(registry, f"{name}:1")
    tool.run("push", f"{registry.name}/{name}:1", f"{registry.name}/{name}:2")
    assert remote_digest(registry, f"{name}:2") == digest


def test_an_index_gives_the_image_of_this_platform(registry, tool, sources):
    assert tool.run("pull", f"{registry.name}/many:1") == sources.amd
    assert tool.run("pull", f"{registry.name}/many@{source_digest(sources, 'many')}") == sources.amd
    tool.refuse("pull", f"{registry.name}/arm:1", says="not made for linux/amd64")
    tool.refuse("pull", f"{registry.name}/arm-alone:1", says="made for linux/arm64")


def test_digests_and_names_that_are_not_there(registry, tool, sources):
    digest = source_digest(sources, "app")
    assert tool.run("pull", f"{registry.name}/app@{digest}") == digest
    assert tool.inspect(digest)["digest"] == digest
    tool.refuse("pull", f"{registry.name}/app:none", says="has no app to pull")
    tool.refuse("pull", f"{registry.name}/nothing", says="has no nothing to pull")
    tool.refuse("pull", f"127.0.0.1:{registries.free_port()}/app", says="pull '127.0.0.1:")
    tool.refuse("push", "not-here", says="no image 'not-here' is here")


def test_the_store_is_a_layout_that_skopeo_reads(registry, tool):
    ref = f"{registry.name}/app:1"
    digest = tool.run("pull", ref)
    assert skopeo("inspect", "--format", "{{.Digest}}", f"oci:{tool.folder}:{ref}").strip() == digest


def test_pushes_mount_what_another_repository_has(registry, tool):
    with Server(behind=registry.name) as front:
        tool.run("pull", f"{front.name}/app:1")
        front.requests.clear()
        tool.run("push", f"{front.name}/app:1", f"{front.name}/mounted:1")
        assert not [r for r in front.requests if r[0] == "PUT" and "/blobs/" in r[1]]
        assert [r for r in front.requests if r[0] == "POST" and "from=app" in r[1]]
    assert remote_digest(registry, "mounted:1") == remote_digest(registry, "app:1")


def test_what_is_here_is_not_fetched_again(registry, tool):
    with Server(behind=registry.name) as front:
        tool.run("pull", f"{front.name}/app:1")
        assert len([r for r in front.requests if "/blobs/" in r[1]]) == 4  # two layers are one
        tool.run("pull", f"{front.name}/app:1")
        assert len([r for r in front.requests if "/blobs/" in r[1]]) == 4


def test_garbage_goes_with_the_last_tag(registry, tool):
    ref = f"{registry.name}/app:1"
    digest = tool.run("pull", ref)
    tool.run("tag", ref, "mine:1")
    tool.run("rm", ref)
    assert tool.run("gc").startswith("0 blobs")
    tool.run("rm", "mine:1")
    assert tool.run("gc", digest).startswith("0 blobs")
    assert tool.run("gc").startswith("5 blobs")
    assert tool.is_empty()


# ---- lines that break ----

def test_a_pull_goes_on_where_the_line_broke(registry, tool, sources):
    with CuttingProxy(registry.port, cuts=3, after=3 << 20) as proxy:
        digest = tool.run("pull", f"{proxy.name}/big:1")
        assert proxy.made == 2  # 8 MiB in pieces of 3
    assert digest == source_digest(sources, "big")


def test_a_pull_begins_anew_where_there_are_no_ranges(registry, tool):
    broken = []

    def answer(request):
        if "/blobs/" in request.path and not broken:
            broken.append(request.path)
            status, headers, body = request.pass_on()
            return status, {**headers, "Content-Length": str(len(body))}, body[:len(body) // 2]
        request.headers.replace_header("Range", "") if "Range" in request.headers else None
        return None

    def cut_short(request):
        result = answer(request)
        if result:
            request.close_connection = True
        return result

    with Server(cut_short, behind=registry.name) as front:
        tool.run("pull", f"{front.name}/big:1")
    assert broken


def test_a_line_that_always_breaks_ends_the_pull(registry, tool):
    with CuttingProxy(registry.port, cuts=1 << 30, after=1000) as proxy:
        tool.refuse("pull", f"{proxy.name}/big:1", says="after 6 tries")
    assert tool.run("gc").endswith(" bytes") and tool.is_empty()


def test_a_push_begins_anew_when_the_line_broke(registry, tool):
    class Uplink(CuttingProxy):
        """Cuts what goes to the registry."""

        def forward(self, source, sink, limit):
            super().forward(source, sink, self.after if limit is None else None)

    tool.run("pull", f"{registry.name}/big:1")
    with Uplink(registry.port, cuts=1, after=1 << 20) as proxy:
        tool.run("push", f"{registry.name}/big:1", f"{proxy.name}/sent:1")
        assert proxy.made == 1
    assert remote_digest(registry, "sent:1") == remote_digest(registry, "big:1")


def test_busy_registries_are_asked_again(registry, tool):
    times = {}

    def answer(request):
        times[request.path] = times.get(request.path, 0) + 1
        return (503, {}, b"") if times[request.path] == 1 and request.path != "/v2/" else None

    with Server(answer, behind=registry.name) as front:
        tool.run("pull", f"{front.name}/app:1")


def test_a_pull_can_be_cancelled(registry, tool):
    tool.refuse("pull", f"{registry.name}/big:1", says="cancelled", options=("--insecure", "--cancel-at", "1"))
    tool.run("gc")
    assert tool.is_empty()


def test_pulls_of_one_image_at_once(registry, tool):
    with Server(behind=registry.name) as front:
        digests = tool.run("pull", *[f"{front.name}/big:1"] * 4).split()
        assert len(digests) == 4 and len(set(digests)) == 1
        assert len([r for r in front.requests if "/blobs/" in r[1]]) == 2  # each fetched once


def test_processes_pull_one_image_at_once(registry, tool):
    pulls = [tool.start("pull", f"{registry.name}/big:1") for _ in range(4)]
    digests = {p.communicate(timeout=60)[0] for p in pulls}
    assert [p.returncode for p in pulls] == [0] * 4 and len(digests) == 1
    assert len(tool.blobs()) == 3


def test_a_killed_pull_leaves_no_temporary_files(registry, tool):
    with CuttingProxy(registry.port, cuts=0, after=0) as proxy:
        process = tool.start("pull", f"{proxy.name}/big:1", options=("--insecure", "--progress"))
        for line in process.stderr:
            if b"/8" in line and not line.split()[-1].startswith(b"0/"):
                break
        process.kill()
        process.communicate()
    tool.run("ls")
    tool.run("gc")
    assert tool.is_empty()


# ---- hostile servers ----

def test_a_blob_with_other_bytes_is_refused_and_nothing_is_left(registry, tool):
    def answer(request):
        if "/blobs/" not in request.path:
            return None
        status, headers, body = request.pass_on()
        return status, headers, body[:-1] + bytes([body[-1] ^ 1])

    with Server(answer, behind=registry.name) as front:
        tool.refuse("pull", f"{front.name}/app:1", says="nothing of it was kept")
    assert tool.is_empty()
    assert json.loads(tool.run("ls")) == []


@pytest.mark.parametrize("change,says", [(lambda body: body + b"x", "more bytes"), (lambda body: body[:-1], "fewer bytes")])
def test_a_blob_of_another_length_is_refused(registry, tool, change, says):
    def answer(request):
        if "/blobs/" not in request.path:
            return None
        status, headers, body = request.pass_on()
        body = change(body)
        return status, {**headers, "Content-Length": str(len(body))}, body

    with Server(answer, behind=registry.name) as front:
        tool.refuse("pull", f"{front.name}/app:1", says=says)
    assert tool.is_empty()


def test_a_manifest_that_is_not_its_digest_is_refused(registry, tool, sources):
    def answer(request):
        if "/manifests/" not in request.path:
            return None
        status, headers, body = request.pass_on()
        return status, {**headers, "Content-Length": str(len(body) + 1)}, body + b" "

    with Server(answer, behind=registry.name) as front:
        tool.refuse("pull", f"{front.name}/app:1", says="a manifest that is not")
        tool.refuse("pull", f"{front.name}/app@{source_digest(sources, 'app')}", says="a manifest that is not")
    assert tool.is_empty()


def one_manifest(text):
    """A server whose only manifest is that."""
    return lambda request: (200, {}, text if "/manifests/" in request.path else b"")


@pytest.mark.parametrize("text,says", [
    (b"", "no JSON"), (b"[" * 100000, "no JSON"), (b"[]", "no JSON object"), (b'{"schemaVersion": 1}', "schema 1"),
    (b'{"schemaVersion": 2}', "neither"), (b'{"schemaVersion": 2, "layers": [], "manifests": []}', "both"),
    (b'{"schemaVersion": 2, "layers": [], "layers": []}', "no JSON"),
    (b'{"schemaVersion": 2, "layers": []}', "no sha256 digest"), (b'{"schemaVersion": 2, "manifests": []}', "not made for"),
    (b" " * (3 << 20), "more than 2097152 bytes"),
    (json.dumps({"schemaVersion": 2, "layers": [], "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
     "digest": "sha256:" + "0" * 64, "size": 1 << 40}}).encode(), "at most 2097152 bytes"),
    (json.dumps({"schemaVersion": 2, "layers": [], "config": {"mediaType": "application/vnd.helm",
     "digest": "sha256:" + "0" * 64, "size": 1}}).encode(), "something else than an image"),
], ids=lambda value: str(value)[:20].strip())
def test_hostile_manifests(tool, text, says):
    with Server(one_manifest(text)) as server:
        tool.refuse("pull", f"{server.name}/x", says=says)
    assert tool.is_empty()


def test_indexes_without_end(tool):
    index, texts = b"", {}
    for depth in range(6):
        entries = [] if not depth else [{"mediaType": "application/vnd.oci.image.index.v1+json", "size": len(index),
                                         "digest": registries.sha256(index)}]
        index = json.dumps({"schemaVersion": 2, "manifests": entries, "annotations": {"depth": str(depth)}}).encode()
        texts[registries.sha256(index)] = texts["latest"] = index
    with Server(lambda request: (200, {}, texts.get(request.path.split("/")[-1], b""))) as server:
        tool.refuse("pull", f"{server.name}/x", says="indexes lead to indexes")


# ---- who we are ----

def test_basic_authentication(tool, sources, tmp_path):
    with Registry(tmp_path / "registry", registries.htpasswd_auth(tmp_path, "me", "secret")) as registry:
        skopeo("copy", "--dest-tls-verify=false", "--dest-creds", "me:secret", f"oci:{sources.folder}:app",
               f"docker://{registry.name}/app:1")
        ref, me = f"{registry.name}/app:1", ("--insecure", "--user", "me", "--password")
        tool.refuse("pull", ref, says="wants a user name and a password")
        tool.refuse("pull", ref, says="refuses to", options=(*me, "wrong"))
        tool.run("pull", ref, options=(*me, "secret"))
        tool.run("push", ref, f"{registry.name}/other:1", options=(*me, "secret"))


def test_token_authentication(tool, sources, tmp_path):
    with TokenServer(tmp_path, "me", "secret") as tokens, Registry(tmp_path / "registry", tokens.auth()) as registry:
        ref, me = f"{registry.name}/a/app:1", ("--insecure", "--user", "me", "--password")
        skopeo("copy", "--dest-tls-verify=false", "--dest-creds", "me:secret", f"oci:{sources.folder}:app", f"docker://{ref}")
        tool.refuse("pull", ref, says="who are you?")
        tool.refuse("pull", ref, says="refuses to log in", options=(*me, "wrong"))
        tool.run("pull", ref, options=(*me, "secret"))
        tokens.requests.clear()
        tool.run("push", ref, f"{registry.name}/b:1", options=(*me, "secret"))
        assert "&scope=repository%3ab%3apull%2cpush&" in tokens.requests[0][1].lower()
        assert len(tokens.requests) == 1


def test_credentials_stay_with_their_origin(registry, tool):
    elsewhere = Server(behind=registry.name)

    def answer(request):
        if request.headers.get("Authorization", "").split(" ")[0] != "Basic":
            return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
        if "/blobs/" in request.path:
            return 307, {"Location": f"http://{elsewhere.name}{request.path}"}, b""
        del request.headers["Authorization"]
        return None

    with elsewhere, Server(answer, behind=registry.name) as front:
        tool.run("pull", f"{front.name}/app:1", options=("--insecure", "--user", "me", "--password", "secret"))
        assert elsewhere.requests and not [r for r in elsewhere.requests if "Authorization" in r[2]]


def test_redirects_that_never_end(tool):
    with Server(lambda request: (302, {"Location": request.path}, b"")) as server:
        tool.refuse("pull", f"{server.name}/x", says="redirects more than 5 times")


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://user:secret@127.0.0.1:1/x"])
def test_redirects_elsewhere(tool, location):
    with Server(lambda request: (302, {"Location": location}, b"")) as server:
        tool.refuse("pull", f"{server.name}/x", says="pull '")


def test_certificates_are_verified(tool, sources, tmp_path):
    key, certificate = tmp_path / "key", tmp_path / "crt"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-subj",
                    "/CN=r", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"], check=True, capture_output=True)
    with Registry(tmp_path / "registry", tls=(certificate, key)) as registry:
        skopeo("copy", "--dest-tls-verify=false", f"oci:{sources.folder}:app", f"docker://{registry.name}/app:1")
        ref = f"{registry.name}/app:1"
        tool.refuse("pull", ref, says="certificate is not trusted", options=())
        tool.run("pull", ref, options=("--ca", certificate))
        tool.run("pull", ref, options=("--insecure",))
        down = Server(behind=registry.name)
        with down:
            tool.refuse("pull", f"{down.name}/app:1", says="does not speak https", options=())


# ---- archives ----

@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_archives_of_skopeo_come_in(tool, sources, tmp_path, form):
    archive = tmp_path / "image.tar"
    skopeo("copy", f"oci:{sources.folder}:app", f"{form}:{archive}:example.org/app:7")
    assert tool.run("import", input=archive.read_bytes()) == "example.org/app:7"
    assert tool.run("import", "other:1", input=archive.read_bytes()) == "docker.io/library/other:1"
    image = tool.inspect("other:1")
    assert image["layer_count"] == 4 and image["config"]["cmd"] == ["sh"]
    if form == "oci-archive":
        assert image["digest"] == source_digest(sources, "app")


def test_exports_are_read_by_skopeo_in_both_forms(tool, sources, tmp_path):
    archive = tmp_path / "image.tar"
    skopeo("copy", f"oci:{sources.folder}:app", f"oci-archive:{archive}:example.org/app:7")
    tool.run("import", input=archive.read_bytes())
    _, exported, _ = tool.call("export", "example.org/app:7")
    out = tmp_path / "out.tar"
    out.write_bytes(exported)
    assert skopeo("inspect", "--format", "{{.Digest}}", f"oci-archive:{out}:7").strip() == source_digest(sources, "app")
    inspected = json.loads(skopeo("inspect", f"docker-archive:{out}:example.org/app:7"))
    assert inspected["Labels"] == {"a": "b"} and len(inspected["Layers"]) == 4
    skopeo("copy", f"docker-archive:{out}:example.org/app:7", f"dir:{tmp_path}/dir")  # reads and checks every layer
    again = Tool(tmp_path / "again")
    assert again.run("import", input=exported) == "example.org/app:7"
    assert again.inspect("example.org/app:7")["digest"] == source_digest(sources, "app")


def test_a_broken_archive_leaves_nothing(tool, sources, tmp_path):
    archive = tmp_path / "image.tar"
    for form in ("docker-archive", "oci-archive"):
        skopeo("copy", f"oci:{sources.folder}:app", f"{form}:{archive}:example.org/app:7")
        data = archive.read_bytes()
        archive.unlink()
        at = data.index(b"\x1f\x8b\x08" if form == "oci-archive" else b"small")
        tool.refuse("import", input=data[:at] + b"X" + data[at + 1:], says="archive: ")
        tool.refuse("import", input=data[:len(data) // 2], says="archive: ")
    tool.refuse("import", "x", input=b"", says="archive: ")
    tool.refuse("import", "x", input=b"no tar at all" * 1000, says="archive: ")
    tool.run("gc")
    assert tool.is_empty()


def test_a_made_image_is_run_of_the_mill_for_others(registry, tool, tmp_path):
    layer = tmp_path / "layer.tar"
    layer.write_bytes(tar_layer({"hello": b"world"}))
    digest = tool.run("add", "made:1", '{"config": {"Cmd": ["/hello"]}}', layer)
    tool.run("push", "made:1", f"{registry.name}/made:1")
    assert remote_digest(registry, "made:1") == digest
    assert json.loads(skopeo("inspect", "--tls-verify=false", "--config", f"docker://{registry.name}/made:1"))["config"]["Cmd"] == ["/hello"]
