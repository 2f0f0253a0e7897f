"""Laws of what refers to an image, in a layout or a registry: it goes along with the image that it is about."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

import asyncpush
from asyncpush import Platform, Registry
from asyncpush.emulator import Emulator
from asyncpush.manifest import DescriptorDocument, parse_descriptor
from asyncpush.migrate.plan.load import read_plan
from asyncpush.migrate.verify import verify_plan
from asyncpush.model import Digest
from asyncpush.sources.oci_layout import Directory, find_relations
from asyncpush.verify import Verification
from support.aws import aws, judge
from support.commands import Server
from support.images import MANIFEST, A, B, C, Json, Layout, at, image_of, names_of, saved
from support.migrations import Bench, outcomes
from support.registry_server import RegistryServer, reads, refusal, running

EMPTY = "application/vnd.oci.empty.v1+json"


def about(layout: Layout, subject: Json | None, text: str) -> Json:
    """An artifact that says *text* about *subject*."""
    config, said = layout.blob(b"{}", EMPTY), [layout.blob(text.encode(), "text/spdx")]
    pointer = {name: subject[name] for name in ("mediaType", "digest", "size")} if subject else None
    return layout.document(MANIFEST, {"config": config, "layers": said, **({"subject": pointer} if pointer else {})})


def tag_of(subject: Json, ending: str = "") -> str:
    return f"sha256-{str(subject['digest'])[7:]}{ending}"


def by_subject(layout: Layout, image: Json) -> dict[str, str | None]:
    """As oras writes it."""
    sbom = about(layout, image, "an sbom")
    layout.tag(sbom)
    return {str(sbom["digest"]): None}


def by_tag_schema(layout: Layout, image: Json) -> dict[str, str | None]:
    """As regctl writes it: the index of the referrers tag schema, alone."""
    sbom, scan = about(layout, image, "an sbom"), about(layout, image, "a scan")
    layout.tag(layout.index(sbom, scan), tag_of(image))
    return {str(sbom["digest"]): None, str(scan["digest"]): None}


def by_cosigns_tag(layout: Layout, image: Json) -> dict[str, str | None]:
    """As a copy of a repository has it."""
    found: dict[str, str | None] = {}
    for ending in (".sig", ".att", ".sbom"):
        made = about(layout, None, f"cosign's {ending}")
        layout.tag(
            made, f"registry.example/team/app:{tag_of(image, ending)}" if ending == ".att" else tag_of(image, ending)
        )
        found[str(made["digest"])] = tag_of(image, ending)
    return found


def by_cosigns_kinds(layout: Layout, image: Json) -> dict[str, str | None]:
    """As `cosign save` writes it."""
    [entry] = layout.manifests
    annotations: Any = entry["annotations"]
    annotations["kind"] = "dev.cosignproject.cosign/image"
    found: dict[str, str | None] = {}
    for kind, ending in (("sigs", ".sig"), ("atts", ".att")):
        made = about(layout, None, f"cosign's {kind}")
        layout.tag(made, kind=f"dev.cosignproject.cosign/{kind}")
        found[str(made["digest"])] = tag_of(image, ending)
    return found


WAYS: list[Callable[[Layout, Json], dict[str, str | None]]] = [
    by_subject,
    by_tag_schema,
    by_cosigns_tag,
    by_cosigns_kinds,
]


async def stored(emulator: Emulator, repository: str) -> dict[str, list[str]]:
    """Each manifest of a repository, with its tags."""
    client = judge(emulator.endpoint_url)
    details = await to_thread.run_sync(lambda: client.describe_images(repositoryName=repository)["imageDetails"])
    return {each["imageDigest"]: each.get("imageTags", []) for each in details}


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_what_refers_to_the_image_is_no_image_and_goes_along(
    emulator: Emulator, registry: Registry, tmp_path: Path, way: Any, archive: bool
) -> None:
    layout = Layout()
    image = layout.image(A)
    layout.tag(image, "1.0")
    expected = way(layout, image)
    source = saved(tmp_path / "app.tar", layout.archive()) if archive else layout.write(tmp_path / "app")

    result = await asyncpush.push(registry, str(source), "team/app:1.0")

    assert str(result.digest) == image["digest"]
    assert {str(each.digest): each.outcome for each in result.referrers} == dict.fromkeys(expected, "pushed")
    assert {str(each.subject) for each in result.referrers} == {image["digest"]}
    tags = {digest: [tag] if tag else [] for digest, tag in expected.items()}
    assert await stored(emulator, "team/app") == {image["digest"]: ["1.0"], **tags}
    again = await asyncpush.push(registry, str(source), "team/app:1.0")
    assert {each.outcome for each in again.referrers} == {"present"}
    assert await names_of(source) == [("app", "1.0")]


async def test_referrers_of_children_and_of_referrers_go_along(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    """Referrers of children and of referrers go along; those of other images do not."""
    layout = Layout()
    amd, arm, other = layout.image(A), layout.image(B, platform="linux/arm64"), layout.image(C)
    index = layout.index(at(amd, "linux/amd64"), at(arm, "linux/arm64"))
    of_index, of_arm, of_other = (about(layout, each, "an sbom") for each in (index, arm, other))
    signature = about(layout, of_arm, "signed")
    for each in (signature, of_index, of_arm, of_other):
        layout.tag(each)
    folder = layout.tag(index, "1").tag(other, "2").write(tmp_path / "app")

    whole = await asyncpush.push(registry, f"oci:{folder}:1", "team/whole:1")
    part = await asyncpush.push(registry, f"oci:{folder}:1", "team/part:1", platform=Platform("linux", "arm64"))
    none = await asyncpush.push(registry, f"oci:{folder}:1", "team/none:1", referrers=False)

    def digests(result: asyncpush.ImageResult) -> set[str]:
        return {str(each.digest) for each in result.referrers}

    assert digests(whole) == {of_index["digest"], of_arm["digest"], signature["digest"]}
    assert digests(part) == {of_arm["digest"], signature["digest"]}
    assert digests(none) == set()
    assert set(await stored(emulator, "team/part")) == {arm["digest"], of_arm["digest"], signature["digest"]}
    assert {repository for repository, _ in await names_of(folder)} == {"app"}
    assert len(await names_of(folder)) == 2


@pytest.mark.parametrize("migrated", [False, True])
async def test_referrers_beyond_the_limit_are_named(here: Bench, tmp_path: Path, migrated: bool) -> None:
    """Five that refer to one another: three go along, the next is named, and fails."""
    layout = here.layout
    chain = [layout.image(A)]
    layout.tag(chain[0], "1")
    for number in range(5):
        layout.tag(about(layout, chain[number], str(number)))
        chain.append(about(layout, chain[number], str(number)))
    folder = layout.write(tmp_path / "app")

    if migrated:
        path = here.plan()
        images = [{"from": f"oci:{folder}", "to": "team/app"}]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"images": images}))
        report = await here.run(path)
        told = [(each.outcome, str(each.error or "")) for each in report.results if each.subject]
    else:
        settings = asyncpush.Settings(create_repository=True)
        async with asyncpush.connect(aws=aws(here.emulator.endpoint_url), settings=settings) as registry:
            result = await asyncpush.push(registry, f"oci:{folder}:1", "team/app:1")
        told = [(each.outcome, str(each.error or "")) for each in result.referrers]

    assert sorted(outcome for outcome, _ in told) == ["failed", "pushed", "pushed", "pushed"]
    assert [error for _, error in told if "more than 3 steps" in error]
    assert set(await stored(here.emulator, "team/app")) == {str(each["digest"]) for each in chain[:4]}


async def test_a_referrer_without_its_subject_is_an_image(tmp_path: Path) -> None:
    """A referrer can be chosen, and is an image where its subject is missing."""
    layout = Layout()
    image = layout.image(A)
    sbom = about(layout, image, "an sbom")
    layout.tag(image, "1").tag(sbom).write(tmp_path / "both")
    Layout(layout.files, []).tag(sbom).write(tmp_path / "alone")

    for source in (f"oci:{tmp_path}/both:@1", f"oci:{tmp_path}/both:@{sbom['digest']}", f"oci:{tmp_path}/alone"):
        root = (await image_of(source)).root
        assert root.manifest
        assert str(root.manifest.digest) == sbom["digest"]


async def test_a_referrer_that_is_damaged_costs_itself_only_and_the_exit_status(server: Server, tmp_path: Path) -> None:
    layout = Layout()
    image = layout.image(A)
    good, bad = about(layout, image, "good"), about(layout, image, "bad")
    layout.tag(image, "1").tag(bad).tag(good)
    lost = json.loads(layout.files[f"blobs/sha256/{str(bad['digest'])[7:]}"])["layers"][0]["digest"]
    del layout.files[f"blobs/sha256/{lost[7:]}"]
    folder = layout.write(tmp_path / "app")

    ran = server.run("push", f"oci:{folder}", "damaged/app:1", "--create-repository", "--output", "json")

    [told] = json.loads(ran.out)["images"]
    assert ran.status == 1
    assert f"lacks layer {lost}" in ran.err
    assert (told["outcome"], told["digest"]) == ("pushed", image["digest"])
    found = {each["source"].rpartition("@")[2]: each for each in told["referrers"]}
    assert {digest: each["outcome"] for digest, each in found.items()} == {
        good["digest"]: "pushed",
        bad["digest"]: "failed",
    }
    assert json.loads(ran.out)["totals"] | {"referrers": 2, "referrersFailed": 1} == json.loads(ran.out)["totals"]
    without = server.run("push", f"oci:{folder}", "damaged/other:1", "--create-repository", "--no-referrers")
    assert (without.status, without.err.count("lacks")) == (0, 0)


async def test_with_to_and_in_a_dry_run_referrers_are_named_beside_their_image(server: Server, tmp_path: Path) -> None:
    layout = Layout()
    image = layout.image(A)
    sbom = about(layout, image, "an sbom")
    folder = layout.tag(image, "1").tag(sbom).write(tmp_path / "app")

    for more, outcome in ((["--dry-run"], "planned"), ([], "pushed"), (["--dry-run"], "present")):
        words = ["push", f"oci:{folder}", "--to", "toward", "--create-repository", "--output", "json", *more]
        ran = server.run(*words)
        assert ran.status == 0, ran.err
        [told] = json.loads(ran.out)["images"]
        [referrer] = told["referrers"]
        assert (referrer["outcome"], referrer["digest"]) == (outcome, sbom["digest"])
        assert referrer["destination"].endswith(f"toward/app@{sbom['digest']}")


@pytest.mark.parametrize("way", WAYS)
async def test_migrations_carry_them_and_verify_expects_them(here: Bench, tmp_path: Path, way: Any) -> None:
    layout = here.layout
    image = layout.image(A)
    layout.tag(image, "1")
    expected = way(layout, image)
    layout.write(tmp_path / "app")
    path = here.plan()
    document = json.loads(path.read_text())
    document["images"] = [{"from": f"oci:{tmp_path}/app", "to": "team/app"}]
    path.write_text(json.dumps(document))

    report = await here.run(path)

    assert set(outcomes(report).values()) == {"pushed"}
    assert {str(each.digest) for each in report.results if each.subject} == set(expected)
    assert set(await stored(here.emulator, "team/app")) == {image["digest"], *expected}
    plan = await read_plan(path)
    whole = [each for each in await verify_plan(plan) if isinstance(each, Verification)]
    assert {str(each.digest): each.is_whole for each in whole} == dict.fromkeys([str(image["digest"]), *expected], True)

    client = judge(here.emulator.endpoint_url)
    gone = [{"imageDigest": next(iter(expected))}]
    await to_thread.run_sync(lambda: client.batch_delete_image(repositoryName="team/app", imageIds=gone))
    broken = [each for each in await verify_plan(plan) if not (isinstance(each, Verification) and each.is_whole)]
    assert len(broken) == 1


@given(st.lists(st.integers(0, 9), max_size=6), st.randoms(use_true_random=False))
def test_every_entry_is_an_image_or_refers_to_one(tmp_path_factory: Any, subjects: list[int], random: Any) -> None:
    layout = Layout()
    made: list[Json] = [layout.image(A)]
    for number, subject in enumerate(subjects):
        made.append(about(layout, made[subject] if subject < len(made) else None, str(number)))
    random.shuffle(made)
    folder = layout.write(tmp_path_factory.mktemp("law"))
    entries = [
        parse_descriptor(DescriptorDocument(str(each["mediaType"]), str(each["digest"]), int(str(each["size"]))), "it")
        for each in made
    ]

    relations = find_relations(Directory(folder, "it"), dict(enumerate(entries)))

    reached: set[Digest] = set()
    left = [entry.digest for at, entry in enumerate(entries) if at not in relations.subjects]
    while left:
        digest = left.pop()
        reached.add(digest)
        left += [each.digest for each, _ in relations.by_subject.get(digest, ()) if each.digest not in reached]
    assert reached == {entry.digest for entry in entries}


@pytest.mark.parametrize("tool", ["oras", "regctl"])
async def test_layouts_of_other_tools(
    emulator: Emulator, registry: Registry, tmp_path: Path, need: Callable[[str], str], tool: str
) -> None:
    program = need(tool)
    layout = Layout()
    layout.tag(layout.image(A), "1").write(tmp_path / "app")
    (tmp_path / "sbom").write_text("an sbom")
    words = {
        "oras": ["attach", "--oci-layout", "app:1", "--artifact-type", "text/spdx", "sbom"],
        "regctl": ["artifact", "put", "--artifact-type", "text/spdx", "--subject", "ocidir://app:1", "-f", "sbom"],
    }[tool]
    run = [program, *words]
    await to_thread.run_sync(lambda: subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, timeout=60))

    result = await asyncpush.push(registry, str(tmp_path / "app"), "team/app:1")

    [referrer] = result.referrers
    assert referrer.outcome == "pushed"
    assert str(referrer.digest) in await stored(emulator, "team/app")


# Registries


def in_registry(server: RegistryServer, layout: Layout) -> tuple[Json, Json, Json, Json]:
    """An image with an SBOM that is signed, and a signature under cosign's tag."""
    image = layout.image(A)
    sbom, signature = about(layout, image, "an sbom"), about(layout, None, "signed")
    signed = about(layout, sbom, "signed, too")
    server.hold(layout, image, "team/app", "1")
    server.hold(layout, signature, "team/app", tag_of(image, ".sig"))
    server.referrers = {str(image["digest"]): [sbom], str(sbom["digest"]): [signed]}
    return image, sbom, signature, signed


async def test_push_carries_what_refers_to_an_image_in_a_registry(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    async with running() as server:
        image, sbom, signature, signed = in_registry(server, Layout())
        source, sources = f"docker://{server.host}/team/app:1", {server.host: reads(server)}
        result = await asyncpush.push(registry, source, "team/app:1", sources=sources)
        without = await asyncpush.push(registry, source, "team/none:1", sources=sources, referrers=False)

    assert {str(each.digest): each.outcome for each in result.referrers} == {
        sbom["digest"]: "pushed",
        signature["digest"]: "pushed",
        signed["digest"]: "pushed",
    }
    assert await stored(emulator, "team/app") == {
        image["digest"]: ["1"],
        sbom["digest"]: [],
        signed["digest"]: [],
        signature["digest"]: [tag_of(image, ".sig")],
    }
    assert without.referrers == ()
    assert set(await stored(emulator, "team/none")) == {image["digest"]}


@pytest.mark.parametrize("listing", [False, True])
async def test_what_a_registry_does_not_give_is_named_and_fails(server: Server, tmp_path: Path, listing: bool) -> None:
    async with running() as source:
        image, sbom, _, _ = in_registry(source, Layout())
        part = "/referrers/" if listing else f"/manifests/{sbom['digest']}"

        @source.rule("GET", part)
        async def denied(request: web.Request) -> web.StreamResponse:
            return web.Response(status=503 if listing else 403)  # a refused list would be asked for as a tag

        words = ["push", f"docker://{source.host}/team/app:1", f"denied/{'list' if listing else 'one'}:1"]
        options = ["--create-repository", "--output", "json", "--src-plain-http"]
        ran = await to_thread.run_sync(lambda: server.run(*words, *options))

    [told] = json.loads(ran.out)["images"]
    assert told["digest"] == image["digest"]
    assert ran.status == (1 if listing else 4), ran.err
    assert {each["outcome"] for each in told["referrers"]} == {"pushed", "failed"}
    assert sum(each["outcome"] == "failed" for each in told["referrers"]) == 1
    assert ran.err.count("not carried along") == 1


async def test_push_names_what_is_gone_at_its_source(server: Server) -> None:
    async with running() as source:
        _, sbom, _, _ = in_registry(source, Layout())

        @source.rule("GET", f"/manifests/{sbom['digest']}")
        async def gone(request: web.Request) -> web.StreamResponse:
            return refusal(404, "MANIFEST_UNKNOWN", "gone")

        words = ["push", f"docker://{source.host}/team/app:1", "gone/one:1", "--create-repository", "--src-plain-http"]
        ran = await to_thread.run_sync(lambda: server.run(*words))

    assert ran.status == 0, ran.err
    assert "is gone at its source" in ran.err
