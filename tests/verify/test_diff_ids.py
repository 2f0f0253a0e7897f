"""Laws of ``verify --deep``: an image's layers are those that its config names, and what can't be told is said."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import asyncpush
from asyncpush import Registry
from asyncpush.emulator import Emulator
from asyncpush.migrate.plan.load import read_plan
from asyncpush.migrate.verify import verify_plan
from asyncpush.verify import Verification, verify_image
from support.commands import Server, run_here
from support.images import CONFIG, FOREIGN_LAYER, LAYER, OCI, A, B, DockerSave, Json, Layout, config_json, digest, saved
from support.layer_bytes import DAMAGED, PACKED, WHOLE
from support.migrations import Bench, bench, keys

DOCKER = "application/vnd.docker."
ENCRYPTED = f"{LAYER}+encrypted"
IN_TOTO = "application/vnd.in-toto+json"
COSIGN = "application/vnd.dev.cosign.simplesigning.v1+json"


def image(layers: list[tuple[str, bytes]], diff_ids: Any, config_type: str = CONFIG, **config: object) -> Layout:
    """A layout with one image, ``1``, of these layers as they lie there, by their media types."""
    layout = Layout()
    document = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}, **config}
    described = layout.blob(json.dumps(document).encode(), config_type)
    return layout.tag(layout.manifest(described, [layout.blob(data, kind) for kind, data in layers]), "1")


async def verified(registry: Registry, layout: Layout, folder: Path) -> Verification:
    await asyncpush.push(registry, f"oci:{layout.write(folder / 'layout')}:1", "team/app:1")
    shallow = await verify_image(registry, "team/app:1")
    assert (shallow.is_whole, shallow.notes) == (True, ())
    return await verify_image(registry, "team/app:1", deep=True)


async def test_layers_are_whole_however_they_are_compressed_and_typed(registry: Registry, tmp_path: Path) -> None:
    lies = [(f"{OCI}layer.v1.tar", "gzip"), (f"{DOCKER}image.rootfs.diff.tar.gzip", "plain")]
    for kind, way in [*((LAYER, way) for way in (*WHOLE, "plain")), *lies]:
        layout = image([(kind, WHOLE.get(way, A)), (LAYER, gzip.compress(B))], [digest(A), digest(B)])

        found = await verified(registry, layout, tmp_path)

        assert (found.problems, found.notes, found.blobs) == ((), (), 3), (kind, way)


async def test_a_layer_that_is_not_its_diff_id_is_damaged(registry: Registry, tmp_path: Path) -> None:
    for damage, stored in DAMAGED.items():
        layout = image([(LAYER, gzip.compress(B, 1)), (LAYER, stored)], [digest(B), digest(A)])

        found = await verified(registry, layout, tmp_path)

        assert [str(problem.digest) for problem in found.problems] == [digest(stored)], damage
        [problem] = found.problems
        assert (problem.kind, problem.subject, found.blobs) == ("damaged", "layer", 2), damage
        assert problem.detail.startswith("is damaged: its ")


async def test_a_plain_layer_and_one_that_is_shorter_than_a_tar_header_count(
    registry: Registry, tmp_path: Path
) -> None:
    layout = image([(f"{OCI}layer.v1.tar", A), (f"{OCI}layer.v1.tar", b"x")], [digest(B), digest(b"x")])

    [problem] = (await verified(registry, layout, tmp_path)).problems

    detail = f"is damaged: its uncompressed bytes have the digest {digest(A)}, but the config says {digest(B)}"
    assert (str(problem.digest), problem.detail) == (digest(A), detail)


async def test_a_config_with_another_number_of_layers_is_damaged(registry: Registry, tmp_path: Path) -> None:
    layout = image([(LAYER, PACKED)], [digest(A), digest(B)])

    [problem] = (await verified(registry, layout, tmp_path)).problems

    assert (problem.kind, problem.subject) == ("damaged", "config")
    assert problem.detail == "is damaged: it has 2 diff ids, but the manifest has 1 layers"


async def test_two_images_with_one_layer_are_each_compared_with_their_own_config(
    registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    layer = layout.blob(PACKED, LAYER)
    good, bad = (
        layout.manifest(layout.blob(config_json([plain], platform), CONFIG), [layer])
        for plain, platform in ((A, "linux/amd64"), (B, "linux/arm64"))
    )
    layout.tag(layout.index(good, bad), "1")

    [problem] = (await verified(registry, layout, tmp_path)).problems

    assert str(problem.digest) == digest(PACKED)
    assert digest(B) in problem.detail


NO_IMAGES = {
    "attestation": image([(IN_TOTO, b"{}")], [digest(b"another")], os="unknown", architecture="unknown"),
    "attestation without diff ids": image([(IN_TOTO, b"{}")], ["", ""]),
    "signature": image([(COSIGN, b"{}")], [digest(b"another")], os="", architecture=""),
    "chart": image([(f"{OCI}layer.v1.tar+gzip", b"chart")], [], "application/vnd.cncf.helm.config.v1+json"),
    "artifact": image([("text/plain", b"sbom")], [], "application/vnd.oci.empty.v1+json"),
}


async def test_what_is_no_image_has_no_diff_ids(registry: Registry, tmp_path: Path) -> None:
    for kind, layout in NO_IMAGES.items():
        found = await verified(registry, layout, tmp_path)

        assert (found.problems, found.notes, found.blobs) == ((), (), 2), kind


UNKNOWN = {
    "type": (
        image([(LAYER, PACKED), (ENCRYPTED, b"?")], [digest(A), digest(B)]),
        f"is of type {ENCRYPTED}: it was not",
    ),
    "xz": (image([(LAYER, lzma.compress(A))], [digest(A)]), "is compressed with xz: it was not compared"),
    "sha512": (image([(LAYER, PACKED)], [f"sha512:{'0' * 128}"]), "which is not sha256: they were not compared"),
    "none": (image([(LAYER, PACKED)], None), "has no diff ids: no layer was compared"),
    "config": (image([(LAYER, PACKED)], "no list"), "can't be read: no layer was compared"),
}


async def test_what_can_not_be_compared_is_said_and_is_no_damage(registry: Registry, tmp_path: Path) -> None:
    for kind, (layout, words) in UNKNOWN.items():
        found = await verified(registry, layout, tmp_path)

        assert (found.is_whole, len(found.notes)) == (True, 1), kind
        assert words in found.notes[0]


async def test_foreign_layers_that_ecr_lacks_are_left_out(registry: Registry, tmp_path: Path) -> None:
    layout = Layout()
    foreign: Json = {"mediaType": FOREIGN_LAYER, "digest": digest(b"far"), "size": 3, "urls": ["https://far.example"]}
    layers = [foreign, layout.blob(PACKED, LAYER)]
    config = layout.blob(config_json([b"the far one, uncompressed", B]), CONFIG)
    layout.tag(layout.manifest(config, layers), "1")

    [problem] = (await verified(registry, layout, tmp_path)).problems

    assert str(problem.digest) == digest(PACKED)


def test_the_command_tells_damage_and_notes(server: Server, tmp_path: Path) -> None:
    bad = image([(LAYER, gzip.compress(b"evil")), (ENCRYPTED, b"?")], [digest(A), digest(B)]).write(tmp_path / "bad")
    words = ("push", f"oci:{bad}", "diffs/app:1", "--create-repository", "-q")
    assert run_here(*words, **server.environment).status == 0

    words = ("verify", "--deep", "diffs/app:1", "--progress", "none", "--output", "json")
    ran = run_here(*words, **server.environment)

    assert ran.status == 1
    [found] = json.loads(ran.out)["images"]
    assert (found["outcome"], found["problems"][0]["kind"], len(found["notes"])) == ("broken", "damaged", 1)
    error, note, advice, summary = ran.err.splitlines()
    assert advice.startswith("asyncpush: note: diffs/app:1: delete the image in ECR, and push it again")
    assert error.startswith("asyncpush: error: diffs/app:1: layer sha256:")
    assert note.startswith("asyncpush: note: diffs/app:1: layer sha256:")
    assert summary.startswith("asyncpush: 0 images whole in 0:0")


async def test_a_plans_archive_is_told_from_another_image_by_its_config(
    emulator: Emulator, tmp_path: Path, monkeypatch: Any
) -> None:
    keys(monkeypatch)
    archive = saved(tmp_path / "app.tar", DockerSave().image(A, B, tags=["app:1"]).archive())
    async with bench(tmp_path, emulator) as here:
        path = plan_of(here, archive)
        await here.run(path)
        [whole] = await verify_plan(await read_plan(path), deep=True)
        saved(archive, DockerSave().image(A, B, A, tags=["app:1"]).archive())
        [other] = await verify_plan(await read_plan(path), deep=True)

    assert isinstance(whole, Verification)
    assert isinstance(other, Verification)
    assert (whole.problems, whole.notes, whole.blobs) == ((), (), 3)
    [problem] = other.problems
    assert (problem.kind, problem.digest) == ("unexpected", whole.digest)
    assert str(problem).startswith(f"tag 1 names {whole.digest} with the config sha256:")


def plan_of(here: Bench, archive: Path) -> Path:
    """A plan that brings an archive to the target."""
    path = here.plan()
    plan = json.loads(path.read_text())
    plan["images"] = [{"from": f"docker-archive:{archive}", "to": "team/app"}]
    path.write_text(json.dumps(plan))
    return path
