"""What is written in JSON and YAML: manifests, indexes, plans, and the files that plans are made of."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from asyncpush.manifest import parse_manifest
from asyncpush.migrate.plan import yaml_loader
from asyncpush.migrate.plan.load import parse_plan
from asyncpush.migrate.plan_import import import_plan
from support.emulator_client import OCI_INDEX, OCI_MANIFEST, descriptor, image_manifest, index_manifest
from support.fuzzing import TIME, search, value_or_error

pytestmark = TIME

IMAGE = json.loads(image_manifest(b"{}", b"a", b"b", annotations={"a": "b"}, subject=descriptor(OCI_MANIFEST, b"s")))
INDEX = json.loads(index_manifest(image_manifest(b"{}", b"a"), image_manifest(b"{}", b"b")))
INDEX["manifests"][0]["platform"] = {"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "1"}

#: What takes the place of a value, or is said once more.
STRANGE: list[Any] = [
    None, True, 0, -1, 1.5, 2**53, 2**63, 2**64, 10**400, "", " ", "\x00", "\ud800", "\x1b[2J", "a" * 5000, [], {},
    [[]], [None], {"": ""}, [{}], "sha256:", "sha256:" + "a" * 64, "SHA256:" + "A" * 64, "sha512:" + "a" * 128,
    OCI_INDEX, OCI_MANIFEST, "text/plain", "application/vnd.docker.distribution.manifest.v1+json", ["http://a\n"],
    "linux/amd64",
]  # fmt: skip
RAW = [b"", b"\xef\xbb\xbf", b"\xff", b"\0", b"{", b"}", b"[", b"]", b'"', b",", b":", b"NaN", b"1e999", b"\\ud800",
       b"[" * 3000, b'{"a":' * 2000, b"0" * 5000, b" " * 3000, b'"mediaType":"",', b'"layers":null,']  # fmt: skip
changes = st.lists(st.tuples(st.integers(0, 200), st.sampled_from(STRANGE)), max_size=3)
splices = st.just([]) | st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.sampled_from(RAW)), max_size=3)


@pytest.fixture(autouse=True)
def _few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of a document's values is lower here: to reach it takes seconds while memory is traced."""
    monkeypatch.setattr(yaml_loader, "MAX_VALUES", 20_000)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a document with each of its keys."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        found += [(value, key), *places(value[key])]
    return found


def changed(document: Any, said: list[tuple[int, Any]], torn: list[tuple[float, int, bytes]]) -> bytes:
    """A document with values put in others' places, and bytes in the places of others."""
    document = json.loads(json.dumps(document))
    for number, value in said:
        if found := places(document):
            container, key = found[number % len(found)]
            container[key] = copy.deepcopy(value)
    data = json.dumps(document).encode()
    for place, length, some in torn:
        at = int(place * len(data))
        data = data[:at] + some + data[at + length :]
    return data


def test_any_manifest_or_index_is_read_as_json_reads_it_or_is_an_error() -> None:
    def law(data: bytes) -> None:
        manifest = value_or_error(lambda: parse_manifest(data))
        if manifest is None:
            return
        document = json.loads(data)
        assert str(manifest.digest) == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert manifest.raw == data
        entries = document.get("manifests") or document.get("layers") or []
        members = manifest.children or manifest.layers
        assert [str(each.digest) for each in members] == [each["digest"] for each in entries]
        assert [each.size for each in members] == [each["size"] for each in entries]

    search(law, st.builds(changed, st.sampled_from([IMAGE, INDEX]), changes, splices), examples=60)


# Plans

PLAN = """\
version: 1
registries:
  quay.io: {credentials: {username: "${USER}", password: "${TOKEN}"}}
targets:
  eu: {registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com, prefix: mirror}
defaults: &base
  to: eu
  platforms: [linux/amd64, linux/arm64]
  repository: {create: true, mutability: immutable, encryption: KMS}
images:
  - from: quay.io/team/app
    tags: {semver: ">=1.2 <3", newest: 3, exclude: {glob: "*-rc*"}}
  - {from: nginx, to: [eu], tags: {regex: "1\\..*", min_tags: 1}}
  - <<: *base
    from: oci:build/out
"""
LINES = [
    "x: &a [1, 2]", "y: *a", "z: *nobody", "<<: *base", "- !!python/object/apply:os.system [ls]", "- !!binary aGk=",
    "? [a, b]", "? {a: b}", "'", '"', "|", ">-", "---", "...", "%YAML 9.9", "\t- a", "- 2026-01-01", "- 0x1F",
    "- 1_000", "- .inf", "- .nan", "- 190:20:30", "- ~", "- yes", "images: []", "version: 1", "version: '1'", "- 012",
    "- !a b", "a" * 3000, "[" * 2000, "- " * 900, "{a: " * 900, "\x00", "\ufeff", '- "\\ud800"', "\x85", "&b " * 40,
    "${USER", "$$", "- from: ${USER}", "from: 1", "tags: {regex: '(a+)+$'}", "tags: {semver: '" + "1 " * 300 + "'}",
    "tags: {glob: '" + "[" * 300 + "'}",
    "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)),
]  # fmt: skip
edits = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 2), st.integers(0, 8), st.sampled_from(LINES)), max_size=5
)


def edited(text: str, said: list[tuple[int, int, int, str]]) -> str:
    """A document with lines taken out, and others put in, indented by some blanks."""
    lines = text.splitlines()
    for at, gone, blanks, line in said:
        lines[at : at + gone] = [" " * blanks + line]
    return "\n".join(lines)


def test_any_plan_is_one_for_yaml_too_or_an_error() -> None:
    def law(text: str) -> None:
        plan = value_or_error(lambda: parse_plan(text, Path("no-such-folder/plan.yaml"), {"USER": "u", "TOKEN": "t"}))
        if plan is not None:
            assert plan.entries
            assert {"version", "images"} <= yaml.safe_load(text).keys()

    search(law, st.builds(edited, st.just(PLAN), edits), examples=40)


OTHERS = {
    "skopeo": "quay.io:\n  credentials: {username: a, password: b}\n  images-by-tag-regex:\n    team/app: ^1\\.\n",
    "regsync": "version: 1\ncreds: [{registry: a.io, user: u, pass: p}]\nsync:\n  - {source: a.io/b/c, target: "
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com/b/c, type: repository, tags: {allow: ['1.*']}}\n",
    "dregsy": "tasks:\n  - source: {registry: x.io, auth: YTpi}\n    target: {registry: y.io}\n    mappings:\n"
    "      - {from: a/bc, tags: ['semver: >=1'], platform: all}\n",
    "image-syncer": "auth: {quay.io: {username: a, password: b}}\nimages:\n  quay.io/a/b:1,2: [y.io/a/b]\n",
    "list": "nginx:1\nquay.io/a/b 123456789012.dkr.ecr.eu-west-1.amazonaws.com/a/b\n",
}


def test_any_foreign_configuration_makes_a_readable_plan_or_an_error() -> None:
    """Any configuration of another tool gives a readable plan, or an error."""

    def law(form: str, said: list[tuple[int, int, int, str]]) -> None:
        text = edited(OTHERS[form], [(at % 6, gone, blanks, line) for at, gone, blanks, line in said])
        done = value_or_error(lambda: import_plan(text, "file", form=form))
        if done is not None:
            names = {"USER": "u", **dict.fromkeys(re.findall(r"\$\{(\w+)", done.text), "x")}
            assert parse_plan(done.text, None, names).entries

    search(law, st.sampled_from(sorted(OTHERS)), edits, examples=30)
