"""The plan's document: what it means, and all that can be wrong with it, told at once and with its place."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.errors import AsyncpushError, PlanError, UsageError
from asyncpush.migrate.ledger import fingerprint
from asyncpush.migrate.plan.document import plan_schema
from asyncpush.migrate.plan.load import parse_plan, read_plan
from asyncpush.migrate.plan.model import Plan, PlanTarget
from asyncpush.migrate.plan_import import import_plan
from asyncpush.model import Platform
from asyncpush.reference import RegistryName, parse_registry
from asyncpush.settings import AwsConfiguration, Credentials, RepositorySettings, Settings, SourceRegistry

EU = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
HEX = "ab" * 32


def plan_of(text: str, path: Path | None = None, **environ: str) -> Plan:
    return parse_plan(text, path, environ)


def images_of(*entries: str, more: str = "", path: Path | None = None) -> Plan:
    """A plan of these entries, in YAML's flow style."""
    listed = "\n".join(f"  - {entry}" for entry in entries)
    return plan_of(f"version: 1\n{more}\nimages:\n{listed}\n", path)


def problems_of(text: str, path: Path | None = None, **environ: str) -> dict[str, str]:
    """The problems of a document, by place; several of one place are joined by a bar."""
    with pytest.raises(PlanError) as caught:
        plan_of(text, path, **environ)
    found: dict[str, str] = {}
    for problem in caught.value.problems:
        assert "\n" not in problem
        _, place, words = problem.split(": ", 2)
        found[place] = f"{found[place]} | {words}" if place in found else words
    return found


WHOLE = f"""\
version: 1
registries:
  docker.io:
    credentials: {{username: me, password: "${{HUB_TOKEN}}"}}
    connections: ${{CONNECTIONS:-8}}
  registry.internal:5000:
    plain_http: true
    credentials: {{anonymous: true}}
  quay.io:
    tls: {{verify: no, ca: ca.pem, cert: own.pem, key: own.key}}
    credentials: {{helper: pass}}
  {EU}:
    credentials: {{ecr: {{profile: p, region: r}}}}
targets:
  eu: {{registry: {EU}, prefix: /mirror/, profile: p}}
  own: {{region: eu-west-1, endpoint_url: "http://127.0.0.1:1"}}
  public: {{registry: public.ecr.aws/alias}}
defaults:
  targets: [eu]
  platforms: [linux/amd64, linux/arm64/v8]
  referrers: false
  tags: {{newest: 3}}
  repository:
    create: true
    mutability: IMMUTABLE
    exclusions: [latest, "dev-*"]
    scan_on_push: true
    encryption: KMS
    kms_key: alias/key
    tags: {{team: x, cost: 1.50}}
    policy: {{Version: 2012-10-17, Statement: [{{Effect: Allow, Count: 3, Deep: {{on: true}}}}]}}
    lifecycle_policy: rules.json
images:
  - from: docker.io/library/nginx
  - from: docker://quay.io/team/app:1.4
    to: team/app:stable
    targets: [own, public]
    referrers: true
    platforms: all
    repository: {{mutability: MUTABLE, create: false, exclusions: [x]}}
  - from: registry.internal:5000/a/b@sha256:{HEX}
    to: a/b
  - from: {EU}/a/c
    tags: [1.20, no, 2026-01-01, "3"]
"""


UNTAGGED = {"tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 14}
LIFECYCLE = {"rules": [{"rulePriority": 1, "selection": UNTAGGED, "action": {"type": "expire"}}]}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("ca.pem", "own.pem", "own.key"):
        (tmp_path / name).touch()
    (tmp_path / "rules.json").write_text(json.dumps(LIFECYCLE))
    return tmp_path


def test_a_whole_document_means_what_it_says(files: Path) -> None:
    plan = plan_of(WHOLE, files / "plan.yaml", HUB_TOKEN="s3cret")

    eu = PlanTarget("eu", parse_registry(EU), "mirror", AwsConfiguration(profile="p"))
    own = PlanTarget("own", aws=AwsConfiguration(region="eu-west-1", endpoint_url="http://127.0.0.1:1"))
    assert plan.targets == (eu, own, PlanTarget("public", parse_registry("public.ecr.aws/alias")))
    assert plan.path == files / "plan.yaml"
    assert plan.source_registries == {
        "docker.io": SourceRegistry(host="docker.io", credentials=Credentials("me", "s3cret"), connections=8),
        "registry.internal:5000": SourceRegistry(host="registry.internal:5000", plain_http=True, anonymous=True),
        "quay.io": SourceRegistry(
            host="quay.io",
            verify=False,
            ca_bundle=files / "ca.pem",
            client_certificate=files / "own.pem",
            client_key=files / "own.key",
            credential_helper="pass",
        ),
        EU: SourceRegistry(host=EU, aws=AwsConfiguration(profile="p", region="r")),
    }

    nginx, app, by_digest, named = plan.entries
    assert (nginx.host, nginx.repository, nginx.reference) == ("docker.io", "library/nginx", None)
    assert nginx.location == "docker://docker.io/library/nginx"
    assert [(goal.target, goal.repository, goal.tag) for goal in nginx.goals] == [(eu, "mirror/nginx", None)]
    assert nginx.platforms == (Platform("linux", "amd64"), Platform("linux", "arm64", "v8"))
    assert (nginx.referrers, nginx.create, nginx.tags.newest) == (False, True, 3)
    settings = nginx.repository_settings
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Count": 3, "Deep": {"on": True}}]}
    assert json.loads(settings.policy or "") == policy
    assert settings == RepositorySettings(
        mutability="IMMUTABLE_WITH_EXCLUSION",
        exclusions=("latest", "dev-*"),
        scan_on_push=True,
        encryption="KMS",
        kms_key="alias/key",
        resource_tags=(("team", "x"), ("cost", "1.50")),
        policy=settings.policy,
        lifecycle_policy=json.dumps(LIFECYCLE),
    )

    assert (app.place, app.location, app.reference) == ("images[1]", "docker://quay.io/team/app:1.4", "1.4")
    assert [(goal.target.name, goal.repository, goal.tag) for goal in app.goals] == [
        ("own", "team/app", "stable"),
        ("public", "team/app", "stable"),
    ]
    assert (app.referrers, app.create, app.platforms, app.tags.names) == (True, False, (), ("1.4",))
    assert app.repository_settings.mutability == "MUTABLE_WITH_EXCLUSION"
    assert app.repository_settings.kms_key == "alias/key"

    assert by_digest.reference == f"sha256:{HEX}"
    assert [goal.tag for goal in by_digest.goals] == [None]
    assert not by_digest.tags.needs_listing
    assert named.tags.names == ("1.20", "no", "2026-01-01", "3")


def test_json_says_the_same() -> None:
    rules = '{"newest": 3, "glob": "*", "exclude": {"names": [1.20, "x"]}}'
    as_json = f'{{"version": 1, "images": [{{"from": "a/b", "tags": {rules}, "referrers": false}}]}}'
    as_yaml = (
        "version: 1\nimages:\n- from: a/b\n  referrers: no\n  tags: {newest: 3, glob: '*', exclude: {names: [1.20, x]}}"
    )

    for path in (None, Path("plan.json")):
        assert plan_of(as_json, path).entries == plan_of(as_yaml).entries


def test_the_least_plan_goes_to_the_callers_own_registry() -> None:
    plan = images_of("{from: nginx}")

    [entry] = plan.entries
    assert plan.targets == (PlanTarget("own", RegistryName()),)
    assert [(goal.repository, goal.tag) for goal in entry.goals] == [("nginx", None)]
    assert (entry.tags.needs_listing, entry.referrers, entry.create) == (True, True, False)
    assert entry.repository_settings == RepositorySettings()
    assert plan.notices == ()


@pytest.mark.parametrize(
    ("tags", "names", "glob"),
    [
        ('"1.25"', ("1.25",), ()),
        ("[a, b, a]", ("a", "b"), ()),
        ("{glob: '*'}", (), ("*",)),
        ("{glob: [a]}", (), ("a",)),
    ],
)
def test_tags_can_be_a_name_names_or_rules(tags: str, names: tuple[str, ...], glob: tuple[str, ...]) -> None:
    [entry] = images_of(f"{{from: quay.io/a/b, tags: {tags}}}").entries

    assert (entry.tags.names, entry.tags.patterns.glob) == (names, glob)


def test_all_rules_of_tags_arrive() -> None:
    rules = (
        '{names: x, glob: [a, b], regex: v.*, semver: ">=1 <2", exclude: {names: n, glob: g, regex: r, semver: "*"}}'
    )
    [entry] = images_of(f"{{from: quay.io/a/b, tags: {rules}}}").entries

    tags = entry.tags
    assert (tags.names, tags.exclude_names, tags.patterns.glob, tags.patterns.regex) == (
        ("x",),
        ("n",),
        ("a", "b"),
        ("v.*",),
    )
    assert [each.text for each in tags.patterns.semver] == [">=1 <2"]
    assert (tags.exclude.glob, tags.exclude.regex, [each.text for each in tags.exclude.semver]) == (
        ("g",),
        ("r",),
        ["*"],
    )


def test_rules_can_be_alternatives() -> None:
    rules = '{any: [{semver: ">=1", exclude: {glob: "*-x"}}, {regex: [a, b], glob: a}], glob: "*", newest: 2}'
    [entry] = images_of(f"{{from: quay.io/a/b, tags: {rules}}}").entries

    semver, both = entry.tags.alternatives
    assert [each.text for each in semver.patterns.semver] == [">=1"]
    assert semver.exclude.glob == ("*-x",)
    assert (both.patterns.regex, both.patterns.glob) == (("a", "b"), ("a",))
    assert (entry.tags.patterns.glob, entry.tags.newest, entry.tags.needs_listing) == (("*",), 2, True)


def test_the_least_number_of_tags_is_the_entry_s_or_for_rules_the_defaults() -> None:
    plan = images_of(
        "{from: quay.io/a/b}",
        "{from: quay.io/a/c, min_tags: 0}",
        "{from: quay.io/a/d, tags: {glob: a}, min_tags: '${N:-2}'}",
        "{from: quay.io/a/e, tags: [x, y]}",
        "{from: 'quay.io/a/f:1'}",
        "{from: quay.io/a/g, tags: [x, y], min_tags: 2}",
        more="defaults: {min_tags: 3}",
    )

    assert [entry.min_tags for entry in plan.entries] == [3, 0, 2, None, None, 2]
    assert images_of("{from: quay.io/a/b}").entries[0].min_tags is None


def test_what_a_plan_says_in_vain_is_a_notice() -> None:
    plan = images_of(
        '{from: quay.io/a/a, tags: {names: x, glob: "1.0+*", exclude: {names: [x, y]}}}',
        '{from: quay.io/a/b, tags: {semver: [">2 <1", ">1.2.3 <1.2.4", "<0.0.0"], regex: ["v$U", "[$a]b", "a$|b"]}}',
        "{from: quay.io/a/c, tags: {any: [{glob: [a, b], exclude: {glob: [b, a, c]}}, {regex: x}]}}",
        '{from: quay.io/a/d, tags: {exclude: {regex: ".*"}}}',
        '{from: "quay.io/a/e:1", repository: {create: true}}',
        more="defaults: {tags: latest, min_tags: 0, repository: {scan_on_push: true}}",
    )

    assert list(plan.notices) == [
        "defaults.tags: every entry has its own",
        "images[0].tags: x is included by name, so excluding it has no effect",
        "images[0].tags.glob: '1.0+*' matches no tag: tags can't contain '+' (Helm writes _ instead)",
        "defaults.repository: the settings have no effect without create: true or migrate --create-repository",
        "images[1].tags.regex: 'v$U' matches no tag: $ is the end of a tag (write ${NAME} for a variable)",
        "images[1].tags.semver: '>2 <1' contains no version",
        "images[1].tags.semver: '<0.0.0' contains no version",
        "images[2].tags.any[0]: exclude matches every tag that glob matches, so no tag is left",
        "images[3].tags: exclude matches every tag that regex matches, so no tag is left",
    ]
    plan = images_of("{from: 'quay.io/a/b:1'}", more="defaults: {tags: {glob: '*'}, min_tags: 1}")
    assert list(plan.notices) == [
        "defaults.tags: every entry has its own",
        "defaults.min_tags: no entry uses it",
    ]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            "tags: {glob: x, min_tags: 3}",
            "images[0].tags.min_tags: is unknown; it belongs to defaults, or an entry",
        ),
        ("newest: 3", "images[0].newest: is unknown; it belongs to tags"),
        ("create: true", "images[0].create: is unknown; it belongs to repository"),
        ("tags: {platforms: all}", "images[0].tags.platforms: is unknown; it belongs to defaults, or an entry"),
        ("tags: {any: []}", "images[0].tags.any: is empty"),
        ("tags: {any: [{}]}", "images[0].tags.any[0]: matches all tags"),
        ("tags: {any: [{names: x}]}", "images[0].tags.any[0].names: is unknown; it belongs to tags"),
        ("tags: {any: [{regex: '('}]}", "images[0].tags.any[0].regex: '(' is not a regular expression"),
        ("min_tags: -1", "images[0].min_tags: is -1, but must be at least 0"),
        ("tags: [x], min_tags: 2", "images[0].min_tags: is 2, but the entry has at most 1 tag"),
        (
            "tags: {names: x, glob: a, newest: 2}, min_tags: 4",
            "images[0].min_tags: is 4, but the entry has at most 3 tags",
        ),
    ],
)
def test_a_member_in_the_wrong_place_or_beyond_reach_is_a_problem(entry: str, problem: str) -> None:
    with pytest.raises(PlanError) as caught:
        images_of(f"{{from: quay.io/a/b, {entry}}}")

    [only] = caught.value.problems
    assert only.partition(": ")[2].startswith(problem)


def test_sources_on_this_machine_are_relative_to_the_plan(tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    (tmp_path / "app.tar").touch()
    entries = images_of(
        "{from: 'oci:layout:1.0', to: team/a:2}",
        "{from: app.tar, to: team/b}",
        "{from: ./layout, to: team/c, tags: {glob: '1.*'}}",
        f"{{from: 'docker-archive:{tmp_path}/app.tar', to: team/d}}",
        path=tmp_path / "plan.yaml",
    ).entries

    assert [entry.kind for entry in entries] == ["local"] * 4
    assert [entry.location for entry in entries] == [
        f"oci:{tmp_path}/layout:1.0",
        f"{tmp_path}/app.tar",
        f"{tmp_path}/layout",
        f"docker-archive:{tmp_path}/app.tar",
    ]
    assert [entry.goals[0].tag for entry in entries] == ["2", None, None, None]
    assert entries[2].tags.patterns.glob == ("1.*",)


def test_engines_and_s3_are_sources_of_which_only_engines_name_an_image() -> None:
    entries = images_of(
        "{from: 'docker-daemon:quay.io/team/app:1.4'}",
        "{from: 'containers-storage:localhost/app', to: 'own/{basename}:2'}",
        "{from: 's3://bucket/all.tar.gz', to: team/all, tags: {glob: '1.*'}}",
    ).entries
    assert [(entry.kind, entry.location) for entry in entries] == [("local", entry.source) for entry in entries]
    goals = [entry.goals[0] for entry in entries]
    assert [(goal.repository, goal.tag) for goal in goals] == [("team/app", None), ("own/app", "2"), ("team/all", None)]

    listed = (
        "{from: 'docker-daemon:App', to: a/b}, {from: 's3://bucket/folder/', to: a/b}, {from: 's3://bucket/a.tar'},"
        "{from: 's3://bucket/a.tar:1', to: a/b, tags: [x]}, {from: 'docker-daemon:sha256:0123456789ab'}"
    )
    found = problems_of(f"version: 1\nimages: [{listed}]\n")
    assert {place: text.partition(";")[0] for place, text in found.items()} == {
        "images[0].from": "'docker-daemon:App' names no image",
        "images[1].from": "'s3://bucket/folder/' names no object",
        "images[2]": "has no to",
        "images[3].tags": "is not allowed, since s3://bucket/a.tar:1 names one image",
        "images[4]": "has no to",
    }


def test_a_folder_that_is_called_like_a_registry_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "docker.io" / "library" / "nginx").mkdir(parents=True)
    (tmp_path / "nginx").mkdir()
    path = tmp_path / "plan.yaml"

    assert images_of("{from: docker.io/library/nginx}", path=path).entries[0].kind == "registry"
    assert images_of("{from: nginx, to: ng/inx}", path=path).entries[0].kind == "local"
    assert images_of("{from: 'docker://nginx', to: ng/inx}", path=path).entries[0].kind == "registry"


def test_variables_are_replaced_in_all_values_and_dollars_can_be_written() -> None:
    rules = '{regex: "a$$${x:-b}$"}'
    [entry] = plan_of(
        f'version: ${{V:-1}}\nimages: [{{from: "${{HOST:-gcr.io}}/a/b", to: "${{EMPTY:-x}}/${{TO}}", tags: {rules}}}]',
        HOST="quay.io",
        TO="yz",
        EMPTY="",
    ).entries

    assert (entry.host, entry.goals[0].repository, entry.tags.patterns.regex) == ("quay.io", "x/yz", ("a$b$",))


BAD = f"""\
version: 2
registrys: {{}}
registries:
  docker.io: {{credentials: {{username: me, password: [s3cret]}}, connections: 0}}
  quay.io: {{credentials: {{helper: a, anonymous: true}}, tls: {{key: x.key}}}}
  ghcr.io: {{credentials: {{username: me}}}}
  gcr.io: {{credentials: "me:s3cret"}}
  ecr.io: {{credentials: {{ecr: {{endpoint_url: nowhere}}}}, plain_http: maybe}}
  index.docker.io: {{}}
  not a host: {{}}
targets:
  eu: {{registry: quay.io, prefix: Mirror}}
  us: {{registry: {EU}, region: us-east-1, endpoint_url: "ftp://x", access_key_id: AKIA}}
defaults: {{platforms: [linux], tags: , targets: eu, referrers: [1]}}
images:
  - {{from: nginx, tag: x}}
  - {{to: x}}
  - {{from: ./no.tar, to: no/tar}}
  - {{from: nginx, to: "a/b:1", targets: us, tags: {{glob: "*", semver: [">>1", "1.x"], regex: "(", newest: 0}}}}
  - {{from: "nginx:1", to: "c/b:1", targets: us, tags: [x], repository: {{exclusions: [a,b,c,d,e,f], kms_key: k}}}}
  - {{from: "nginx:2", to: "c/b:1", targets: [us, xx], repository: {{policy: no.json, mutability: immutable}}}}
  - 5
  - {{from: "nginx@sha256:12", to: "c/d", platforms: [], targets: []}}
  - {{from: quay.io/a/b, to: "{EU}/x"}}
  - {{from: quay.io/a/b, to: UPPER, tags: ["-x", "sha256:{HEX}"]}}
  - {{from: quay.io/a/b, tags: {{names: [], glob: [], exclude: {{regex: ["["], semver: x.y}}}}}}
  - {{from: quay.io/a/b, tags: {{names: x, newest: 1}}, repository: {{mutability: IMMUTABLE_WITH_EXCLUSION}}}}
  - {{from: "-", to: a/b}}
  - {{from: "oci:", to: a/b}}
  - {{from: q.io/a/b, to: "a/b:-", repository: {{exclusions: ["a b"], policy: {{a: "{"x" * 11000}"}}}}}}
  - {{from: "${{NOT_SET}}/x", to: "${{", repository: {{tags: {{a: [1]}}}}}}
"""


def test_every_problem_of_a_document_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    found = problems_of(BAD, tmp_path / "plan.yaml")

    expected = {
        "version": "is not 1",
        "registrys": "is unknown; did you mean registries?",
        "registries[docker.io].credentials.password": "is a list, but must be text",
        "registries[docker.io].connections": "is 0, but must be at least 1",
        "registries[quay.io].credentials": "has helper and anonymous",
        "registries[quay.io].tls.key": "needs cert | 'x.key' is not an existing file",
        "registries[ghcr.io].credentials": "has no password",
        "registries[gcr.io].credentials": "is text, but must be a mapping with",
        "registries[ecr.io].credentials.ecr.endpoint_url": "is not an endpoint URL",
        "registries[ecr.io].plain_http": "is text, but must be true or false",
        "registries[index.docker.io]": "is docker.io, which is configured already",
        "registries[not a host]": "'not a host' is not a registry host",
        "targets.eu.registry": "'quay.io' is not an ECR registry",
        "targets.eu.prefix": "'Mirror' can't be the beginning",
        "targets.us.region": "is us-east-1, but the registry is in eu-west-1",
        "targets.us.endpoint_url": "is not an endpoint URL",
        "targets.us.access_key_id": "is unknown",
        "defaults.platforms[0]": "'linux' is not a platform",
        "defaults.tags": "is empty",
        "defaults.referrers": "is a list, but must be true or false",
        "images[0].tag": "is unknown; did you mean tags?",
        "images[1]": "has no from",
        "images[2].from": "./no.tar does not exist",
        "images[3].tags.semver[0]": "'>>1' is not a version range",
        "images[3].tags.regex": "'(' is not a regular expression",
        "images[3].tags.newest": "is 0",
        "images[3].to": "names one tag, but the source has several",
        "images[4].tags": "is not allowed, since nginx:1 names one image",
        "images[4].repository.exclusions": "has 6 wildcards; ECR allows 5 | needs mutability",
        "images[4].repository.kms_key": "needs an encryption",
        "images[5].targets": "there is no target 'xx'; use one of eu, us",
        "images[5].repository.policy": f"{tmp_path}/no.json can't be read: No such file",
        "images[5].repository.mutability": "is not IMMUTABLE, ",
        "images[5]": f"{EU}/c/b:1 comes from nginx:2, but in images[4] from nginx:1",
        "images[6]": "is text, but must be a mapping",
        "images[7].from": "'docker://nginx@sha256:12'",
        "images[7].platforms": "is empty",
        "images[7].targets": "is empty",
        "images[8].to": f"'{EU}/x' names a registry",
        "images[9].to": "'UPPER' is not a repository name",
        "images[9].tags[0]": "'-x' is not a tag",
        "images[9].tags[1]": f"'sha256:{HEX}' is not a tag; write a separate entry for an image by digest",
        "images[10].tags.names": "is empty",
        "images[10].tags.glob": "is empty",
        "images[10].tags.exclude.regex[0]": "'[' is not a regular",
        "images[10].tags.exclude.semver": "'x.y' is not a version range",
        "images[11].tags.newest": "applies to patterns",
        "images[11].repository.mutability": "IMMUTABLE_WITH_EXCLUSION needs exclusions",
        "images[12].from": "standard input can't be a source",
        "images[13].from": "'oci:' names no file",
        "images[14].to": "'-' is not a tag",
        "images[14].repository.exclusions[0]": "'a b' is not a tag wildcard",
        "images[14].repository.exclusions": "needs mutability",
        "images[14].repository.policy": "has 11008 characters; ECR allows 10240",
        "images[15].from": "the environment variable NOT_SET is not set",
        "images[15].to": "has ${ without the name of a variable",
        "images[15].repository.tags.a": "is a list, but must be text",
    }
    assert {place: words for place, words in expected.items() if not found.get(place, "-").startswith(words)} == {}
    assert sorted(set(found) - set(expected)) == []


def test_no_secret_is_told(tmp_path: Path) -> None:
    variants = ["{username: me, password: [s3cret]}", "s3cret", "[s3cret]", "{username: {s3cret: 1}, password: s3cret}",
                "{password: s3cret}", "{username: me, password: s3cret, helper: x}", "{password: s3cret, ",
                "{username: me, password: *s3cret}"]  # fmt: skip
    for variant in variants:
        text = f"version: 1\nregistries: {{quay.io: {{credentials: {variant}}}}}\nimages: []\n"
        with pytest.raises(UsageError) as caught:
            plan_of(text)
        assert "alias" in str(caught.value) or "s3cret" not in str(caught.value).replace("username.s3cret", ""), variant
    plan = plan_of(WHOLE.split("targets:\n  eu")[0].split("  quay.io")[0] + "images: [{from: a/b}]", HUB_TOKEN="s3cret")
    assert "s3cret" not in repr(plan)


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 10)}]\n" for before, after in itertools.pairwise("abcdefg")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{}", "has no images"),
        ("[]", "is not a mapping"),
        ("version: 1\nimages: {}", "images: is not a list"),
        ("version: 1\nimages: []", "images: is empty"),
        ("version: 1\nimages:", "images: is not a list"),
        ("version: 1\ntargets: {}\nimages: [{from: a/b}]", "targets: is empty"),
        ("version: 1\ntargets: []\nimages: [{from: a/b}]", "targets: is not a mapping"),
        ("version: 1\nversion: 1\nimages: []", "standard input:2:1: 'version' occurs twice"),
        ('{"version": 1, "version": 1, "images": []}', "'version' occurs twice"),
        ("version: 1\nimages: [{from: a, from: b}]", "standard input:2:20: 'from' occurs twice"),
        ("version: 1\nimages: [", "not YAML"),
        ("registries: {a: {credentials: {username: ${X}}}}", "quote \\${NAME} between braces"),
        ("version: 1\nimages:\n- from: a/b\n  tags:\n  - *", "quote text that begins with"),
        ("images: !!python/object:os.system [x]", "has no version"),
        ("images: !!python/name:os.system x", "is not supported"),
        ("&a [*a]", "levels deep"),
        ("a: " + "[" * 100_000, "not YAML"),
        ("- " * 500 + "x", "levels deep"),
        ("- " * 5000 + "x", "not YAML"),
        ('{"a": ' * 50_000 + "1" + "}" * 50_000, "levels deep"),
        ('{"a": ' * 50 + "1" + "}" * 50, "levels deep"),
        ("version: 1\n? [a]\n: b", "a key must be text"),
        ("a: \0", "not YAML"),
        (LAUGHS, "aliases"),
        (f"a: &a '{'$$' * 50_000}'\nb: [{', '.join(['*a'] * 1500)}]", "aliases"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_said_in_a_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        plan_of(text)
    assert len(str(caught.value)) < 2000


def test_yaml_s_own_ways_of_not_repeating_oneself_work() -> None:
    plan = plan_of(
        "version: 1\nimages:\n- &one {from: quay.io/a/b, tags: &tags [x]}\n"
        "- {to: c/d, <<: *one, from: quay.io/c/d}\n- {<<: [{to: e/f}, *one], tags: *tags}\n"
    )

    assert [entry.goals[0].repository for entry in plan.entries] == ["a/b", "c/d", "e/f"]
    assert [entry.source for entry in plan.entries] == ["quay.io/a/b", "quay.io/c/d", "quay.io/a/b"]
    assert [entry.tags.names for entry in plan.entries] == [("x",)] * 3


def test_several_targets_need_a_choice() -> None:
    with pytest.raises(PlanError, match=r"defaults.targets: the plan has several targets, and images\[0\] names none"):
        images_of("{from: a/b}", "{from: c/d}", more=f"targets: {{eu: {{registry: {EU}}}, own: {{}}}}")


def test_what_nobody_uses_is_a_notice() -> None:
    plan = images_of(
        "{from: a/b, targets: own}",
        more=f"registries: {{quay.io: {{}}, docker.io: {{}}}}\ntargets: {{eu: {{registry: {EU}}}, own: {{}}}}",
    )

    assert plan.notices == ("registries: no entry reads from quay.io", "targets: no entry goes to eu")


@pytest.mark.parametrize(
    "entries",
    [
        ("{from: 'a/b:1', to: 'x/y:1'}", "{from: 'a/c:1', to: 'x/y:1'}"),
        ("{from: a/b, to: x/y, tags: [1, 2]}", "{from: a/c, to: x/y, tags: {names: [2], glob: a}}"),
        ("{from: a/b, to: x/y, tags: ['1']}", "{from: 'a/c:1', to: x/y}"),
        ("{from: 'a/b:1', to: x/y}", "{from: 'a/b:2', to: 'x/y:1'}"),
        ("{from: 'a/b:1', to: x/y}", "{from: 'a/b:1', to: x/y, platforms: [linux/amd64]}"),
        (f"{{from: 'a/b@sha256:{HEX}', to: 'x/y:1'}}", "{from: 'a/b:1', to: x/y}"),
        ("{from: 'a/b:1', to: 'x/y'}", "{from: 'quay.io/a/b:1', to: x/y}"),
    ],
)
def test_two_images_for_one_tag_are_a_problem(entries: tuple[str, str]) -> None:
    with pytest.raises(PlanError, match=r"images\[1\]: x/y:[12] comes from .*, but in images\[0\] from "):
        images_of(*entries)


def test_one_image_twice_for_one_tag_is_a_notice() -> None:
    plan = images_of("{from: a/b, to: x/y, tags: ['1', '2']}", "{from: 'a/b:1', to: x/y}", "{from: 'a/b:1', to: x/z}")

    assert plan.notices == ("images[1]: x/y:1 is already in images[0]",)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("region: eu-west-1", "region: eu-west-2"),
        ("endpoint_url: 'http://a'", "endpoint_url: 'http://b'"),
        ("profile: a", "profile: b"),
        (f"registry: {EU}", ""),
    ],
)
def test_one_tag_in_two_registries_is_no_collision(one: str, two: str) -> None:
    images_of(
        "{from: 'a/b:1', to: x/y, targets: one}",
        "{from: 'a/c:1', to: x/y, targets: two}",
        more=f"targets: {{one: {{{one}}}, two: {{{two}}}}}",
    )


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"a": "' + b"x" * 40_000 + b'"}'])
def test_a_policy_s_file_must_hold_a_json_object_of_ecr_s_length(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "policy.json").write_bytes(content)
    found = problems_of(
        "version: 1\ndefaults: {repository: {policy: policy.json}}\nimages: [{from: a/b}, {from: a/c}]",
        tmp_path / "plan.yaml",
    )

    assert list(found) == ["defaults.repository.policy"]


def test_many_problems_are_cut_short() -> None:
    with pytest.raises(PlanError) as caught:
        images_of(*["{from: a/b, tags: {semver: x.y}}"] * 200)

    assert len(caught.value.problems) == 101
    assert caught.value.problems[-1].endswith("... and 100 more problems")


async def test_a_plan_is_read_from_a_file_a_pipe_and_standard_input(tmp_path: Path) -> None:
    text = "version: 1\nimages: [{from: a/b}]\n"
    (tmp_path / "plan.yaml").write_text("\ufeff" + text)
    from_file = await read_plan(tmp_path / "plan.yaml")
    from_memory = await read_plan("-", stdin=BytesIO(text.encode()))
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as pipe:
        async with anyio.create_task_group() as tg:
            tg.start_soon(partial(_fill, write_end, text.encode()))
            from_pipe = await read_plan("-", stdin=pipe)

    assert from_file.entries == from_memory.entries == from_pipe.entries
    assert (from_file.path, from_pipe.path) == (tmp_path / "plan.yaml", None)


async def _fill(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        for byte in data:
            await anyio.lowlevel.checkpoint()
            pipe.write(bytes([byte]))
            pipe.flush()


async def test_waiting_for_a_plan_ends_when_it_is_cancelled() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as pipe, os.fdopen(write_end, "wb"), anyio.move_on_after(0.05) as scope:
        await read_plan("-", stdin=pipe)

    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (Path.mkdir, "directory"),
        (lambda path: path.write_bytes(b"a: \xff"), "not UTF-8 text"),
        (lambda path: path.write_bytes(b"a" * (33 << 20)), "more than 32 MiB"),
    ],
)
async def test_a_plan_that_can_t_be_read_is_an_error(tmp_path: Path, make: Any, message: str) -> None:
    await anyio.to_thread.run_sync(make, tmp_path / "plan.yaml")

    with pytest.raises(UsageError, match=message):
        await read_plan(tmp_path / "plan.yaml")


def test_reading_a_plan_imports_no_client() -> None:
    code = (
        "import sys, asyncpush.migrate.plan.load, asyncpush.cli.plan;"
        "print(sorted({'botocore', 'yaml'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_schema_takes_good_plans_and_refuses_bad_ones(need: Any) -> None:
    need("jsonschema")
    import jsonschema

    schema = plan_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    judge = jsonschema.Draft202012Validator(schema)
    good = [*schema["examples"], {"version": 1, "images": [{"from": "a/b", "tags": "1"}]}]
    for document in good:
        judge.validate(document)
        assert parse_plan(json.dumps(document), None, {"HUB_USER": "a", "HUB_TOKEN": "b"}).entries
    for bad in (
        {},
        {"version": 2, "images": []},
        {"version": 1, "images": [{}]},
        {"version": 1, "images": [{"from": "a", "tag": "x"}]},
        {"version": 1, "images": [{"from": "a", "tags": {"newest": 0}}]},
        {"version": 1, "targets": {"a": {"access_key_id": "x"}}, "images": []},
        {"version": 1, "images": [{"from": "a", "repository": {"mutability": "immutable"}}]},
    ):
        assert not judge.is_valid(bad), bad
        with pytest.raises(PlanError):
            parse_plan(json.dumps(bad), None, {})


def test_every_member_in_the_schema_is_described() -> None:
    schema = plan_schema()

    parts = [schema, *schema["$defs"].values()]
    assert len(parts) == 13
    for part in parts:
        assert part["title"]
        assert part["description"]
        assert {name for name, member in part["properties"].items() if not member.get("description")} == set()
        assert part["additionalProperties"] is False


leaves = st.none() | st.text(max_size=8) | st.sampled_from(
    ["1", "true", "${X}", "$$", "quay.io/a/b", "nginx:1", "a/b", "oci:x", ">=1", "*", "(", EU, "linux/amd64", "all"]
)  # fmt: skip
KEYS = """
version registries targets defaults images from to tags platforms referrers repository names glob regex semver exclude
newest any min_tags create mutability exclusions encryption kms_key policy lifecycle_policy credentials tls ca key
username password helper ecr anonymous registry prefix region endpoint_url docker.io eu
"""
keys = st.sampled_from(KEYS.split())
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=25
)
entries = st.lists(st.dictionaries(st.sampled_from(["from", "to", "tags", "repository", "platforms"]), documents))


@given(st.one_of(documents, st.fixed_dictionaries({"version": st.just("1"), "images": entries | documents})))
def test_any_document_is_a_plan_or_an_error(document: Any) -> None:
    text = yaml.safe_dump(document).replace("'", "")
    for each in (text, json.dumps(document)):
        _plan_or_error(each, {"X": "x"})


@given(st.text())
def test_any_text_is_a_plan_or_an_error(text: str) -> None:
    _plan_or_error(text, {})


def _plan_or_error(text: str, environ: Mapping[str, str]) -> None:
    with suppress(AsyncpushError):
        assert parse_plan(text, Path("no-such-folder/plan.yaml"), environ).entries


@pytest.mark.parametrize("to", ["", ":1", "${EMPTY}", "${EMPTY}:1"])
def test_an_entry_whose_repository_has_no_name_is_not_passed_over(to: str) -> None:
    text = f"version: 1\nimages: [{{from: quay.io/a/b, to: '{to}'}}, {{from: quay.io/a/c}}]"

    with pytest.raises(PlanError, match=r"images\[0\].to: .* names no repository; write REPOSITORY"):
        plan_of(text, EMPTY="")


def test_a_lifecycle_policy_is_checked_member_by_member(tmp_path: Path) -> None:
    """What ECR would refuse of a repository that it has created, the plan's check says by field, file or no file."""
    anything = {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 0}
    rules = [
        {"rulePriority": 1, "selection": anything, "action": {"type": "expire"}},
        {"rulePriority": 1, "selection": {**UNTAGGED, "tagPrefixList": ["v"]}, "action": "expire"},
        {"rulePriority": "2", "selection": {"tagStatus": "tagged", "countType": "sinceImagePushed"}},
        {"rulePriority": 9, "selection": {**UNTAGGED, "tagStatus": "old"}, "action": {}},
        "none",
    ]
    (tmp_path / "bad.json").write_text(json.dumps({"rules": [{**LIFECYCLE["rules"][0], "rulePriority": 0}]}))
    images = [
        {"from": "a/b", "repository": {"lifecycle_policy": {"rules": rules}}},
        {"from": "a/c", "repository": {"lifecycle_policy": "bad.json"}},
        {"from": "a/d", "repository": {"lifecycle_policy": {"rules": []}, "policy": {"Version": "2012-10-17"}}},
        {"from": "a/e", "repository": {"lifecycle_policy": LIFECYCLE}},
    ]
    found = problems_of(json.dumps({"version": 1, "images": images}), tmp_path / "plan.json")
    first = "images[0].repository.lifecycle_policy.rules"
    expected = {
        f"{first}[0].selection.countNumber": "is '0': give a number of at least 1",
        f"{first}[0].rulePriority": "is 1, but a rule for any image needs the highest number",
        f"{first}[1].rulePriority": "is 1, the same as that of rules[0]",
        f"{first}[1].selection.tagPrefixList": "applies to tagged, not to untagged",
        f"{first}[1].action": "is 'expire': give a mapping",
        f"{first}[2].rulePriority": "is '2': give a number of at least 1",
        f"{first}[2].selection.tagPatternList": "is missing: tagged needs it, or tagPrefixList",
        f"{first}[2].selection.countUnit": "is missing: sinceImagePushed needs it (days)",
        f"{first}[2].selection.countNumber": "is missing: give a number of at least 1",
        f"{first}[2].action": "is missing: give a mapping",
        f"{first}[3].selection.tagStatus": "is 'old': give tagged or untagged or any",
        f"{first}[3].action.type": "is missing: give a type such as expire",
        f"{first}[4]": "is not a mapping",
        "images[1].repository.lifecycle_policy": "bad.json: rules[0].rulePriority is '0': give a number of at least 1",
        "images[2].repository.lifecycle_policy": "has 12 characters; ECR requires 100 or more",
        "images[2].repository.lifecycle_policy.rules": "is missing: a lifecycle policy has at least one rule",
        "images[2].repository.policy.Statement": "is missing: a policy has at least one statement",
    }
    assert found == expected


def test_problems_of_inherited_settings_are_noted_at_the_defaults_once(tmp_path: Path) -> None:
    defaults = {"policy": "none.json", "exclusions": ["a b"], "encryption": "KMS", "kms_key": "alias/key"}
    own = [{"mutability": "MUTABLE"}, {"tags": {"a": "b"}}, {"encryption": "AES256"}]
    document = {
        "version": 1,
        "defaults": {"repository": defaults},
        "images": [{"from": f"a/b{at}", "repository": spec} for at, spec in enumerate(own)],
    }
    assert problems_of(json.dumps(document), tmp_path / "plan.json").keys() == {
        "defaults.repository.policy",
        "defaults.repository.exclusions[0]",
        "defaults.repository.exclusions",
        "images[2].repository.kms_key",
    }


def test_problems_quote_what_is_written_and_no_value_of_a_variable(tmp_path: Path) -> None:
    document = """
version: 1
images:
  - {from: "docker://me:${SECRET}@quay.io/team/app", to: app}
  - {from: quay.io/team/app, to: "app:${SECRET}!"}
  - {from: "https://me:hunter-2!@quay.io/team/app", to: app}
"""
    with pytest.raises(PlanError) as caught:
        parse_plan(document, tmp_path / "plan.yaml", {"SECRET": "s3cr3t-value"})

    text = "\n".join((*caught.value.problems, str(caught.value)))
    assert "s3cr3t-value" not in text
    assert "hunter-2" not in text
    assert "${SECRET}" in text


@pytest.mark.parametrize("kind", ["fifo", "device", "large"])
def test_a_policy_that_is_no_small_file_is_a_problem_at_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncpush.files.PIPE_TIMEOUT", 0.2)
    path = tmp_path / "policy.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(bytes(200_000))
    name = "/dev/zero" if kind == "device" else path
    document = f"""
version: 1
images: [{{from: quay.io/team/app, to: app, repository: {{create: true, policy: "{name}"}}}}]
"""
    words = {
        "fifo": "a pipe that nobody writes into",
        "device": "it is not a file",
        "large": "has more than 10240 characters",
    }
    with pytest.raises(PlanError, match=words[kind]):
        parse_plan(document, tmp_path / "plan.yaml", {})


@pytest.mark.parametrize("text", ["version: 1\nimages: [{from: 'a\ud800', to: b}]\n", "a\ud800 b:\n", "\ud800: 1\n"])
def test_text_with_half_a_letter_is_an_error_of_the_plan(text: str) -> None:
    """A program may pass what no file in UTF-8 has."""
    with pytest.raises(UsageError) as caught:
        parse_plan(text, None, {})
    assert str(caught.value).isprintable()
    with pytest.raises(UsageError):
        import_plan(text, "the configuration")


def test_quotas_of_a_target_override_those_of_the_plan() -> None:
    plan = plan_of("""\
version: 1
quotas: {PutImage: "${PUTS}", UploadLayerPart: 100}
registries: {docker.io: {requests_per_second: 5}}
targets: {eu: {region: eu-west-1, quotas: {PutImage: 50}}, us: {region: us-east-1}}
defaults: {targets: [eu, us]}
images: [{from: docker.io/library/nginx, tags: ["1"]}]
""", PUTS="20")  # fmt: skip

    eu, us = plan.targets
    assert dict(eu.quotas) == {"PutImage": 50, "UploadLayerPart": 100}
    assert dict(us.quotas) == {"PutImage": 20, "UploadLayerPart": 100}
    assert plan.source_registries["docker.io"].requests_per_second == 5


def test_quotas_hold_without_targets_and_change_no_fingerprint() -> None:
    """A run resumes under other quotas."""
    text = 'version: 1\nquotas: {PutImage: 20}\nimages: [{from: docker.io/library/nginx, tags: ["1"]}]'
    stated, usual = plan_of(text), plan_of(text.replace("quotas: {PutImage: 20}\n", ""))

    assert dict(stated.targets[0].quotas) == {"PutImage": 20}
    assert fingerprint(stated, Settings(), []) == fingerprint(usual, Settings(), [])


def test_quotas_that_are_none_are_problems() -> None:
    found = problems_of("""\
version: 1
quotas: {putImage: 20, PutImage: 0}
registries: {docker.io: {requests_per_second: 0.5}}
targets: {eu: {region: eu-west-1, quotas: [PutImage]}}
images: [{from: docker.io/library/nginx, tags: ["1"]}]
""")
    assert found.pop("targets.eu.quotas").startswith("is a list, but must be a mapping with PutImage, ")
    assert found == {
        "quotas.putImage": "is unknown; did you mean PutImage?",
        "quotas.PutImage": "is 0, but must be at least 1",
        "registries[docker.io].requests_per_second": "is text, but must be a number",
    }
