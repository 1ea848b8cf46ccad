"""Registries and archives through polderd and its command line."""
import json
import subprocess

import pytest

from polderd import BIN, ApiError, Polderd
from registries import Layout, Registry, Server, skopeo, tar_layer

pytestmark = pytest.mark.needs_no_vmm


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    layout = Layout(tmp_path_factory.mktemp("sources") / "layout")
    layout.tag("app", layout.image([tar_layer({"etc/name": b"app"}), tar_layer({"srv/more": bytes(1 << 20)})]))
    layout.tag("other", layout.image([tar_layer({"etc/name": b"other"})]))
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        for name in ("app", "other"):
            skopeo("copy", "--dest-tls-verify=false", f"oci:{layout.folder}:{name}", f"docker://{registry.name}/{name}:1")
        registry.digest = layout.entries[0]["digest"]
        yield registry


@pytest.fixture(scope="module")
def daemon():
    with Polderd(netns=False) as daemon:
        yield daemon


def polder(daemon, *args, input=None):
    done = subprocess.run([BIN / "polder", "--socket", daemon.socket, *map(str, args)], input=input, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_pull_and_push_through_the_api(daemon, registry):
    api, ref = daemon.client, f"{registry.name}/app:1"
    image = api.do("POST", "/v1/images/pull", {"ref": ref, "insecure": True})
    assert image["digest"] == registry.digest and image["config"]["cmd"] == ["sh"]
    assert [i["ref"] for i in api.get("/v1/images") if i["ref"] == ref]
    api.do("POST", "/v1/images/push", {"ref": ref, "target": f"{registry.name}/api:1", "insecure": True})
    assert skopeo("inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{registry.name}/api:1").strip() == registry.digest


def test_a_pull_that_fails_says_why_and_leaves_nothing(daemon, registry):
    def corrupt(request):
        if "/blobs/" not in request.path:
            return None
        status, headers, body = request.pass_on()
        return status, headers, bytes(len(body))

    with Server(corrupt, behind=registry.name) as front:
        with pytest.raises(ApiError) as refused:
            daemon.client.do("POST", "/v1/images/pull", {"ref": f"{front.name}/other:1", "insecure": True})
        assert "nothing of it was kept" in str(refused.value)
        with pytest.raises(ApiError) as missing:
            daemon.client.get("/v1/images/inspect", ref=f"{front.name}/other:1")
        assert missing.value.status == 404


def test_the_command_line_moves_images(daemon, registry, tmp_path):
    ref, archive = f"{registry.name}/app:1", tmp_path / "app.tar"
    polder(daemon, "image", "pull", "--insecure", ref)
    polder(daemon, "image", "export", ref, archive)
    polder(daemon, "image", "import", archive, "again:1")
    image = json.loads(polder(daemon, "image", "inspect", "again:1"))
    image = image[0] if isinstance(image, list) else image
    assert image["digest"] == registry.digest
    polder(daemon, "image", "tag", "again:1", f"{registry.name}/cli:2")
    polder(daemon, "image", "push", "--insecure", f"{registry.name}/cli:2")
    assert skopeo("inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{registry.name}/cli:2").strip() == registry.digest
    polder(daemon, "image", "rm", "again:1")
