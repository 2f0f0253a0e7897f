"""Real images through the whole of it: pushed by the command line, pulled back by skopeo, and equal."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.aws import password
from support.commands import Server


def pull(skopeo: str, server: Server, name: str, into: Path) -> Path:
    """What skopeo gets for *name*, as an OCI layout or, for Docker's manifests, a directory of files."""
    source = f"docker://{server.host}/{name}"
    options = ["-q", "--src-tls-verify=false", "--preserve-digests", "--all", f"--src-creds=AWS:{password(server.url)}"]
    subprocess.run([skopeo, "copy", *options, source, f"dir:{into}"], check=True, capture_output=True)
    return into


@pytest.mark.parametrize("source", ["busybox", "busybox.oci.tar", "busybox.zstd"])
def test_a_pushed_layout_or_archive_comes_back_with_the_same_digest(
    server: Server, need: Callable[[str], str], real_images: Path, tmp_path: Path, source: str
) -> None:
    """What was pushed from a layout or archive comes back with the same digest."""
    skopeo = need("skopeo")
    name = f"real/{source}:1.35"

    pushed = server.run("push", real_images / source, name, "--create-repository")

    assert pushed.status == 0, pushed.err
    pulled = pull(skopeo, server, name, tmp_path / "pulled")
    manifest = (pulled / "manifest.json").read_bytes()
    assert pushed.out == f"{server.host}/{name}@sha256:{hashlib.sha256(manifest).hexdigest()}\n"
    blobs = json.loads(manifest)["layers"]
    assert blobs
    for blob in blobs:
        data = (pulled / blob["digest"].removeprefix("sha256:")).read_bytes()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == blob["digest"]


def test_layers_of_a_docker_archive_have_the_diff_ids_of_its_config(
    server: Server, need: Callable[[str], str], real_images: Path, tmp_path: Path
) -> None:
    """Every layer of a docker-archive has the diff id that its config names."""
    skopeo = need("skopeo")

    pushed = server.run("push", real_images / "busybox.docker.tar", "real/docker:1", "--create-repository")

    assert pushed.status == 0, pushed.err
    pulled = pull(skopeo, server, "real/docker:1", tmp_path / "pulled")
    manifest = json.loads((pulled / "manifest.json").read_bytes())
    config = json.loads((pulled / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes())
    layers = [(pulled / layer["digest"].removeprefix("sha256:")).read_bytes() for layer in manifest["layers"]]
    diff_ids = [f"sha256:{hashlib.sha256(gzip.decompress(layer)).hexdigest()}" for layer in layers]
    assert diff_ids == config["rootfs"]["diff_ids"]


def test_an_archive_that_was_compressed_as_a_whole_is_the_same_image(
    server: Server, real_images: Path, tmp_path: Path
) -> None:
    plain = (real_images / "busybox.oci.tar").read_bytes()
    squeezed = tmp_path / "busybox.oci.tar.gz"
    squeezed.write_bytes(gzip.compress(plain))

    one = server.run("push", real_images / "busybox.oci.tar", "real/plain:1", "--create-repository")
    two = server.run("push", squeezed, "real/squeezed:1", "--create-repository")
    three = server.run("push", "-", "real/piped:1", "--create-repository", stdin=plain)

    digests = {run.out.partition("@")[2] for run in (one, two, three)}
    assert len(digests) == 1, (one.err, two.err, three.err)
