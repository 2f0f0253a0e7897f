"""Plans from other tools' configurations: what they mean, what is told, and that they pass as plans."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.diagnostics import Problems
from asyncpush.migrate.plan.load import parse_plan
from asyncpush.migrate.plan.model import Plan, PlanEntry
from asyncpush.migrate.plan.tags import TagRules, select
from asyncpush.migrate.plan.versions import Version, VersionRange
from asyncpush.migrate.plan.yaml_loader import escape, expand
from asyncpush.migrate.plan_import import FORMATS, Format, Imported, import_plan
from asyncpush.migrate.plan_import.patterns import dregsy_range, whole_match
from asyncpush.reference import parse_prefix
from support.servers import serving_thread

EU = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
US = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
HEX = "ab" * 32

SKOPEO = f"""\
registry.example.com:5000:
  images:
    team/busybox: []
    redis: ["1.0", 2.0, "sha256:{HEX}", "v3@sha256:{HEX}", "a b", [x]]
    only/wrong: ["v3@sha256:{HEX}"]
    nothing:
    wrong: {{a: b}}
  images-by-tag-regex: {{nginx: '^1\\.13\\.[12]-alpine$', found: 'rc|beta$', broken: '(', many: '(?i)RC'}}
  images-by-semver: {{alpine: ">= 3.12.0", odd: "many"}}
  credentials: {{username: "jo$${{hn", password: "s3cret"}}
  tls-verify: false
  cert-dir: /certs
docker.io:
  images: {{nginx: ["1"]}}
"""

REGSYNC = f"""\
version: 1
creds:
- {{registry: docker.io, user: '{{{{env "HUB_USER"}}}}', pass: '{{{{env "TOKEN"}}}}', reqConcurrent: 3, reqPerSec: 9}}
- {{registry: ghcr.io, user: me, pass: s3cret}}
- {{registry: quay.io, user: me, pass: '{{{{file "/run/s3cret"}}}}'}}
- {{registry: "registry:5000", tls: disabled, credHelper: docker-credential-pass}}
- {{registry: gcr.io, tls: insecure}}
defaults: {{parallel: 2, interval: 60m, ratelimit: {{min: 100}}, referrers: true}}
sync:
- source: alpine
  target: {EU}/mirror/alpine
  type: repository
  platforms: [linux/amd64, linux/arm64]
  tags: {{allow: ['3\\.\\d+', edge], deny: ['3\\.1\\d'], semverRange: [">=3.0.0 <4.0.0", ""]}}
- {{source: quay.io/a/b:1, target: other.example.com/a/b:2, type: image, platform: linux/amd64, hooks: {{pre: x}}}}
- {{source: ghcr.io/c/d, target: {EU}/c/d, type: image, referrers: false}}
- {{source: registry:5000/e/f, target: {EU}/e/f, type: repository, tags: {{allow: ['(']}}}}
- {{source: gcr.io/e/f, target: '{EU}/{{{{ .Ref }}}}', type: repository}}
- {{source: gcr.io, target: {EU}, type: registry}}
- source: gcr.io/g/h
  target: {EU}/g/h
  type: repository
  digestTags: false
  tagSets: [{{allow: ['v.*'], deny: ['.*-rc']}}, {{semverRange: ['^1', '~2.1']}}]
  tags: {{allow: [latest]}}
- {{source: gcr.io/i/j, target: i/j, type: repository, tagSets: [{{}}, {{allow: [x]}}]}}
"""

IMAGES = f"""\
quay.io/coreos/proxy: quay.io/copy/proxy
quay.io/coreos/tags:v1.0,v2.0: [{US}/copy/tags, "other.io/copy/pairs:x,y"]
quay.io/coreos/regex:/v.*-x/: {US}/copy/regex
quay.io/coreos/digest@sha256:{HEX}: {US}/copy/digest:d
quay.io/coreos/uneven:a,b: {US}/copy/uneven:a
quay.io/coreos/broken:/(/: {US}/copy/broken
quay.io/coreos/none: [{{a: b}}]
"""
AUTH = """\
quay.io: {username: "${QUAY_USER}", password: $QUAY_TOKEN}
quay.io/coreos: {username: y, password: s3cret}
docker.io: {username: y, password: s3cret, insecure: true}
"""

AUTH_OF_DREGSY = base64.b64encode(b'{"username": "me", "password": "s3cret"}').decode()

DREGSY = f"""\
relay: skopeo
tasks:
- name: hub
  interval: 60
  source: {{registry: registry.hub.docker.com, auth: {AUTH_OF_DREGSY}}}
  target: {{registry: {EU}, auth-refresh: 10h}}
  mappings:
  - from: library/busybox
    to: mirror/busybox
    tags: ['semver: >=1.31.0 <1.32.0', 'keep: !.*-rc', 'keep: latest 2', latest, 'v0@sha256:{HEX}', 'sha256:{HEX}',
           'a:b']
    platform: linux/amd64
  - {{from: a/all, platform: all}}
  - {{from: a/regex, tags: ['regex: ^v1']}}
  - {{from: 'regex:library/.*', to: x}}
  - {{from: a/keep, tags: ['keep: oldest 3']}}
  - {{from: a/denied, tags: [x, 'regex: !y|z']}}
  - {{from: a/names, tags: [x, '1.0', '1.1', 'keep: latest 1', 'keep: nothing']}}
  - {{from: a/odd, tags: ['semver: ^1.0']}}
  - {{from: a/wrong, tags: ['a:b', 'keep: x']}}
- source: {{registry: {US}, auth-refresh: 10h}}
  target: {{registry: registry.example.com, skip-tls-verify: true}}
  mappings: [{{from: b/c, to: b/d}}]
- {{source: {{registry: x.io}}}}
"""

OCYNC = f"""\
global: {{max_concurrent_transfers: 10}}
registries:
  hub: {{url: docker.io, head_first: true}}
  account: {{url: {US}, auth_type: ecr, aws_profile: reader}}
  eu: {{url: {EU}, aws_profile: writer}}
  us: {{url: "https://{US}"}}
target_groups: {{all: [eu, us]}}
defaults:
  source: hub
  targets: all
  platforms: [linux/amd64]
  tags: {{glob: "3.*", exclude: ["*-rc*"], latest: 2, sort: semver, min_tags: 1}}
  artifacts: {{enabled: false}}
mappings:
- {{from: library/alpine, to: mirror/alpine}}
- {{from: team/app, source: account, targets: [eu], tags: {{semver: ">=1.0"}}, artifacts: {{enabled: true}}}}
- {{from: team/b, source: nowhere}}
- {{from: team/c, tags: {{glob: "{{a,b}}*"}}}}
- {{from: team/d, targets: [nowhere]}}
"""

LIST = f"""\
nginx:1.25 {EU}/mirror/nginx
quay.io/a/b team/b:stable
bad line with words
quay.io/a/only
"""

TEXTS: Mapping[Format, str] = {
    "skopeo": SKOPEO,
    "regsync": REGSYNC,
    "image-syncer": IMAGES,
    "dregsy": DREGSY,
    "ocync": OCYNC,
    "list": LIST,
}


class Everything(dict[str, str]):
    """An environment in which each variable is its own name, in lower case: its value is a secret from then on."""

    def get(self, name: str, default: Any = None) -> Any:
        return name.lower()


def imported(kind: Format, text: str | None = None, **options: Any) -> tuple[Imported, Plan]:
    """An import, and the plan that it makes; its notes are all in the plan's text, too."""
    done = import_plan(TEXTS[kind] if text is None else text, "file", **options)
    plan = parse_plan(done.text, None, Everything())
    assert done.format == kind
    assert plan.notices == ()
    assert [line.partition("# note: ")[2] for line in done.text.splitlines() if "# note: " in line] == list(done.notes)
    assert "s3cret" not in done.text.replace("/run/s3cret", "")
    return done, plan


def goals(plan: Plan) -> list[tuple[str, str, str | None]]:
    return [(entry.source, goal.repository, goal.tag) for entry in plan.entries for goal in entry.goals]


def entry_of(plan: Plan, source: str) -> PlanEntry:
    [found] = [entry for entry in plan.entries if entry.source == source]
    return found


def taken(entry: PlanEntry, *tags: str) -> list[str]:
    return list(select(entry.tags, tags).taken)


def told(done: Imported, *beginnings: str) -> None:
    """See that these notes are there, and no others."""
    left = [note for note in done.notes if not note.startswith(beginnings)]
    assert left == []
    assert [each for each in beginnings if not any(note.startswith(each) for note in done.notes)] == []


@pytest.mark.parametrize("form", FORMATS)
def test_an_import_is_told_by_its_content_and_passes_as_a_plan(form: Format) -> None:
    done, plan = imported(form)

    assert plan.entries
    assert imported(form, form=form)[0] == done


def test_skopeo_takes_tags_digests_patterns_and_versions() -> None:
    done, plan = imported("skopeo")
    host = "registry.example.com:5000"

    assert goals(plan) == [
        (f"{host}/team/busybox", "busybox", None),
        (f"{host}/redis", "redis", None),
        (f"{host}/redis@sha256:{HEX}", "redis", None),
        (f"{host}/nothing", "nothing", None),
        (f"{host}/nginx", "nginx", None),
        (f"{host}/found", "found", None),
        (f"{host}/many", "many", None),
        (f"{host}/alpine", "alpine", None),
        ("docker.io/nginx", "nginx", None),
    ]
    # One that is wrong costs itself; and where all are, no tag is copied, rather than all.
    assert entry_of(plan, f"{host}/redis").tags.names == ("1.0", "2.0")
    assert entry_of(plan, f"{host}/nothing").tags.needs_listing
    assert taken(entry_of(plan, f"{host}/nginx"), "1.13.1-alpine", "1.13.1-alpine-x", "1a13.1-alpine") == [
        "1.13.1-alpine"
    ]
    # Go's MatchString finds a pattern anywhere.
    assert taken(entry_of(plan, f"{host}/found"), "1-rc-2", "beta", "beta2") == ["1-rc-2", "beta"]
    assert taken(entry_of(plan, f"{host}/many"), "1-rc", "1-Rc2", "1") == ["1-rc", "1-Rc2"]
    assert taken(entry_of(plan, f"{host}/alpine"), "3.12.0", "3.11", "edge") == ["3.12.0"]
    source = plan.source_registries[host]
    assert source.credentials is not None
    assert (source.verify, source.credentials.username) == (False, "jo$${hn")
    assert source.credentials.password == "registry_example_com_5000_password"
    told(
        done,
        "skopeo copies one platform",
        f"the password for {host} is not in the plan: set the environment variable REGISTRY_EXAMPLE_COM_5000_PASSWORD",
        "registry.example.com:5000.tls-verify: if registry.example.com:5000 speaks HTTP",
        "registry.example.com:5000.cert-dir can't be imported",
        "semver: a tag such as 1.2.3.4",
        f"{host}, redis: 'v3@sha256:{HEX}' is a tag with a digest, which skopeo skips (an entry from: {host}/redis:v3@",
        f"{host}, redis: 'a b' is neither a tag nor a digest",
        f"{host}, redis: one of its tags is not text",
        f"{host}, only/wrong: 'v3@sha256:",
        f"{host}, wrong: its tags are not a list",
        f"{host}, broken: regex: ",
        f"{host}, odd: semver: 'many' is not a version range",
    )


LISTED = ("1.13.1-alpine", "1.13.2", "21.13", "3.12.0", "rc1", "1-rc-2", "1-RC", "latest", "a.b", "axb", "beta")


class Tags(BaseHTTPRequestHandler):
    """A registry in which each repository has the same tags; nothing else is asked of it."""

    def do_GET(self) -> None:
        body = json.dumps({"name": "any", "tags": LISTED}).encode() if self.path.endswith("/tags/list") else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def tags_registry() -> Iterator[str]:
    """Its host and port."""
    with serving_thread(Tags) as port:
        yield f"127.0.0.1:{port}"


def test_skopeo_itself_would_copy_the_same(skopeo: str, tags_registry: str, tmp_path: Path) -> None:
    patterns = [
        r"^1\.13",
        "rc",
        "(?i)rc",
        "a.b",
        r"a\.b",
        r"^1\.13\.[12]-alpine$",
        "^rc|beta$",
        "(alpine|latest)$",
        "^$",
    ]
    by_regex = {f"team/regex{at}": pattern for at, pattern in enumerate(patterns)}
    images = {"team/all": [], "deep/er/name": [], "some": ["1.0", "x"], "digest": [f"sha256:{HEX}"]}
    document = {"images": images, "images-by-tag-regex": by_regex, "tls-verify": False}
    file = tmp_path / "sync.yaml"
    file.write_text(yaml.safe_dump({tags_registry: document}))
    command = [skopeo, "sync", "--src", "yaml", "--dest", "docker", "--dry-run", file, "example.test"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    theirs = set(re.findall(r'from="docker://(\S+)" to="docker://example.test/(\S+)"', said))

    _, plan = imported("skopeo", file.read_text())
    ours = set()
    for entry in plan.entries:
        [goal] = entry.goals
        tags = select(entry.tags, LISTED).taken if entry.tags.needs_listing else entry.tags.names
        for tag in tags:
            end = f"@{tag}" if tag.startswith("sha256:") else f":{tag}"
            ours.add((f"{entry.host}/{entry.repository}{end}", f"{goal.repository}{end}"))

    assert len(theirs) >= 40
    assert ours == theirs


def test_skopeo_names_repositories_by_the_whole_path_if_scoped() -> None:
    _, plan = imported("skopeo", "quay.io: {images: {team/app: ['1']}}", scoped=True, to=parse_prefix(f"{EU}/mirror"))

    assert goals(plan) == [("quay.io/team/app", "mirror/quay.io/team/app", None)]


def test_regsync_takes_credentials_types_and_anchored_patterns() -> None:
    done, plan = imported("regsync")

    assert goals(plan) == [
        ("alpine", "mirror/alpine", None),
        ("quay.io/a/b:1", "a/b", "2"),
        ("ghcr.io/c/d:latest", "c/d", "latest"),
        ("gcr.io/g/h", "g/h", None),
        ("gcr.io/i/j", "i/j", None),
    ]
    alpine, single, latest, sets, every = plan.entries
    # What one set denies another may allow; ^1 is below 2.0.0, of which 2.0.0-rc is.
    listed = ("v1", "v1-rc", "1.5", "1.0.0-a", "2.0", "2.0-rc", "2.1.0", "2.1.5-x", "2.2", "latest", "x")
    assert taken(sets, *listed) == ["v1", "1.5", "2.0-rc", "2.1.0", "2.1.5-x", "latest"]
    assert taken(every, "x", "y") == ["x", "y"]
    assert sets.referrers  # the defaults' referrers are not taken back by an entry's digestTags
    assert taken(alpine, "3.2", "3.20", "3.1", "3.15", "3.2-x", "edge") == ["3.2", "3.20", "3.1"]
    assert [str(platform) for platform in alpine.platforms] == ["linux/amd64", "linux/arm64"]
    assert [str(platform) for platform in single.platforms] == ["linux/amd64"]
    assert (alpine.referrers, latest.referrers) == (True, False)
    assert [goal.target.registry.host for goal in (*alpine.goals, *single.goals)] == [EU, ""]
    hub = plan.source_registries["docker.io"]
    assert hub.credentials is not None
    assert (hub.credentials.username, hub.credentials.password, hub.connections) == ("hub_user", "token", 3)
    told(
        done,
        "regsync keeps an index of which it takes some platforms",
        "semver: a tag such as 1.2.3.4",
        "docker.io is not an ECR registry",
        "the password for ghcr.io is not in the plan",
        "the password for quay.io is not in the plan",
        "other.example.com is not an ECR registry",
        "defaults.ratelimit can't be imported",
        "creds[0].reqPerSec can't be imported",
        "sync[1].hooks can't be imported",
        "creds[4].tls: if gcr.io speaks HTTP",
        "sync[3]: sync[3].tags.allow: '(' has a group without an end",
        "sync[4]: sync[4].target is a template",
        "sync[5]: its type is 'registry'",
    )


def test_image_syncer_takes_tags_pairs_patterns_and_several_destinations() -> None:
    done, plan = imported("image-syncer", auth=AUTH)

    assert goals(plan) == [
        ("quay.io/coreos/proxy", "copy/proxy", None),
        ("quay.io/coreos/tags", "copy/tags", None),
        ("quay.io/coreos/tags:v1.0", "copy/pairs", "x"),
        ("quay.io/coreos/tags:v2.0", "copy/pairs", "y"),
        ("quay.io/coreos/regex", "copy/regex", None),
        (f"quay.io/coreos/digest@sha256:{HEX}", "copy/digest", "d"),
    ]
    assert entry_of(plan, "quay.io/coreos/tags").tags.names == ("v1.0", "v2.0")
    assert taken(entry_of(plan, "quay.io/coreos/regex"), "v1-x", "v1", "a-v2-x-b") == ["v1-x", "a-v2-x-b"]
    credentials = plan.source_registries["quay.io"].credentials
    assert credentials is not None
    assert (credentials.username, credentials.password) == ("quay_user", "quay_token")
    assert list(plan.source_registries) == ["quay.io"]
    told(
        done,
        "auth, quay.io/coreos: a plan has one login",
        "quay.io is not an ECR registry",
        "other.io is not an ECR registry",
        "quay.io/coreos/uneven:a,b: it has 2 tags, and its destination 1",
        "quay.io/coreos/broken:/(/: its regex",
        "quay.io/coreos/none: its destinations are not text",
    )


def test_a_regsync_target_must_name_a_repository() -> None:
    """A regsync target must name a repository; only unknown members are reported as unknown."""
    sync = f"  - {{source: quay.io/a/b, target: {EU}/, type: repository, referrers: true}}\n"
    sync += f"  - {{source: quay.io/a/c, target: {EU}/a/c, type: repository, referrers: true}}\n"
    done, plan = imported("regsync", f"version: 1\nx-anchors: {{a: 1}}\ny: 1\nsync:\n{sync}")

    assert [entry.source for entry in plan.entries] == ["quay.io/a/c"]
    told(done, f"sync[0]: the destination '{EU}/' names no repository; not imported", "y can't be imported")


def test_image_syncer_s_two_files_can_be_one() -> None:
    text = (
        f'{{"auth": {{"quay.io": {{"username": "a", "password": "s3cret"}}}}, "images": {{"quay.io/a/b": "{EU}/c/d"}}}}'
    )
    _, plan = imported("image-syncer", text)

    assert goals(plan) == [("quay.io/a/b", "c/d", None)]
    assert plan.source_registries["quay.io"].credentials is not None


def test_dregsy_takes_filters_and_the_newest() -> None:
    done, plan = imported("dregsy")
    host = "registry.hub.docker.com"

    assert goals(plan) == [
        (f"{host}/library/busybox", "mirror/busybox", None),
        (f"{host}/library/busybox@sha256:{HEX}", "mirror/busybox", "v0"),
        (f"{host}/library/busybox@sha256:{HEX}", "mirror/busybox", None),
        (f"{host}/a/all", "a/all", None),
        (f"{host}/a/regex", "a/regex", None),
        (f"{host}/a/keep", "a/keep", None),
        (f"{host}/a/denied", "a/denied", None),
        (f"{host}/a/names", "a/names", None),
        (f"{US}/b/c", "b/d", None),
    ]
    busybox = plan.entries[0]
    tags = ("latest", "1.31.0", "1.31.2", "1.31.9-rc", "1.31.1", "1.30.0", "1.32.0")
    assert taken(busybox, *tags) == ["latest", "1.31.2", "1.31.1"]
    # To dregsy a pre-release is a version, so that suffixes such as -alpine count.
    assert taken(busybox, "1.31.1-alpine", "1.31.1-rc", "1.32.0-alpine") == ["1.31.1-alpine", "1.32.0-alpine"]
    assert [str(platform) for platform in busybox.platforms] == ["linux/amd64"]
    assert entry_of(plan, f"{host}/a/all").platforms == ()
    # Its expressions are put between ^ and $, as they are.
    assert taken(entry_of(plan, f"{host}/a/regex"), "v1", "v12-x", "av1") == ["v1"]
    assert taken(entry_of(plan, f"{host}/a/denied"), "a", "ya", "az", "yz", "x") == ["x", "a"]
    assert taken(entry_of(plan, f"{host}/a/keep"), "1", "oldest") == []
    assert entry_of(plan, f"{host}/a/names").tags == TagRules(names=("x", "1.1"))
    credentials = plan.source_registries[host].credentials
    assert credentials is not None
    assert (credentials.username, credentials.password) == ("me", "registry_hub_docker_com_password")
    told(
        done,
        "dregsy copies one platform",
        f"the password for {host} is not in the plan",
        "semver: a tag such as 1.2.3.4",
        "tasks[0].mappings[0]: 'a:b' is not a tag",
        "tasks[0].mappings[3]: it maps by regular expression",
        "tasks[0].mappings[7]: semver: '",
        "tasks[0].mappings[8]: 'a:b' is not a tag",
        "registry.example.com is not an ECR registry",
        "tasks[2]: it has no source or no target",
    )


def test_ocync_takes_defaults_groups_and_profiles() -> None:
    done, plan = imported("ocync")

    assert goals(plan) == [
        ("docker.io/library/alpine", "mirror/alpine", None),
        ("docker.io/library/alpine", "mirror/alpine", None),
        (f"{US}/team/app", "team/app", None),
    ]
    alpine, app = plan.entries
    assert [(goal.target.registry.host, goal.target.aws.profile) for goal in alpine.goals] == [
        (EU, "writer"),
        (US, None),
    ]
    assert taken(alpine, "3.1", "3.2-rc1", "3.2", "3.3", "4") == ["3.2", "3.3"]
    assert (alpine.referrers, app.referrers) == (False, True)
    # The mapping's tags and the defaults' are one.
    assert taken(app, "3.0", "1.0", "0.9", "3.1-rc1", "3.2-r0", "3.3") == ["3.2-r0", "3.3"]
    assert (alpine.min_tags, app.min_tags) == (1, 1)
    source = plan.source_registries[US]
    assert source.aws is not None
    assert source.aws.profile == "reader"
    told(
        done,
        "semver: a tag such as 1.2.3.4",
        "mappings[2]: there is no registry 'nowhere'",
        "mappings[3]: mappings[3].tags.glob: '{a,b}*' has braces",
        "mappings[4]: there is no registry 'nowhere'",
    )


def test_a_list_becomes_entries() -> None:
    done, plan = imported("list", to=parse_prefix(f"{US}/all"))

    assert goals(plan) == [
        ("nginx:1.25", "all/mirror/nginx", "1.25"),
        ("quay.io/a/b:latest", "all/team/b", "stable"),
        ("quay.io/a/only:latest", "all/a/only", "latest"),
    ]
    assert {goal.target.registry.host for entry in plan.entries for goal in entry.goals} == {US}
    told(done, "line 3: 'bad line with words'")


@pytest.mark.parametrize("form", FORMATS)
def test_all_of_an_import_can_go_to_one_place(form: Format) -> None:
    _, plan = imported(form, to=parse_prefix(f"{EU}/mirror"))

    assert [(target.registry.host, target.prefix) for target in plan.targets] == [(EU, "mirror")]
    assert all(goal.repository.startswith("mirror/") for entry in plan.entries for goal in entry.goals)


def test_what_would_be_no_good_plan_is_left_out_and_told() -> None:
    images = "{a/bc: ['1'], d/bc: ['1', '2'], E/ff: [], g/hh: ['-'], x: []}"
    done, plan = imported("skopeo", f"quay.io: {{images: {images}}}")

    assert goals(plan) == [("quay.io/a/bc", "bc", None)]
    told(
        done,
        "skopeo copies",
        "quay.io/d/bc: bc:1 comes from quay.io/d/bc, but in images[0] from quay.io/a/bc",
        "quay.io/E/ff: 'E/ff' is not a repository name",
        "quay.io, g/hh: '-' is neither a tag nor a digest",
        "quay.io/x: 'x' is not a repository name",
    )


def test_odd_text_is_written_so_that_it_is_read_as_it_was() -> None:
    pattern = "\U0001f600\u2028\x85\n'\"#: \\\\ no"
    text = json.dumps({"quay.io": {"images-by-tag-regex": {"a/bc": pattern, "a/\u2028: x\n": "x"}, "a\x07\nb": 1}})
    done, plan = imported("skopeo", text)

    assert [entry.tags.patterns.regex for entry in plan.entries] == [(f".*(?:{pattern}).*",)]
    assert all(note.isprintable() for note in done.notes)
    assert len(done.notes) == 3


@given(st.text(st.sampled_from("$${}AB:-x")))
def test_what_is_escaped_means_itself(text: str) -> None:
    problems = Problems()

    assert expand(escape(text), {"A": "no"}, "", problems) == text
    assert not problems


@pytest.mark.parametrize(
    "tags", ["{allow: {a: b}}", "{allow: [1, [2]]}", "{deny: ['(']}", "[x]", "{semverRange: ['?']}", "{unheard: [x]}"]
)
def test_tags_that_can_t_be_understood_are_never_all_tags(tags: str) -> None:
    text = f"sync: [{{source: a/bc, target: {EU}/a/bc, type: repository, tags: {tags}}}]"

    with pytest.raises(UsageError, match="nothing"):
        import_plan(text, "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nimages: [{from: a/b}]", "is already a plan"),
        ("{}", "is none of skopeo, regsync"),
        ("[]", "is none of"),
        ("x: y", "is none of"),
        ("sync: []", "nothing"),
        ("sync: [", "not YAML"),
    ],
)
def test_what_is_none_of_them_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        import_plan(text, "file")


leaves = st.none() | st.text(max_size=6) | st.sampled_from(
    ["1", "true", "no", "[]", "quay.io", "a/bc", f"{EU}/a/bc", "nginx:1", "/v.*/", "regex: (", "semver: >1",
     "image", "repository", '{{env "A"}}', "${A}", "$", "all", "linux/amd64", f"x@sha256:{HEX}", "#", "a: b", "\u2028"]
)  # fmt: skip
KEYS = """
images images-by-tag-regex images-by-semver credentials username password tls-verify creds registry user pass credHelper
tls reqConcurrent defaults sync source target type platform platforms tags allow deny semverRange referrers auth
insecure tasks mappings from to registries url target_groups targets glob semver exclude latest artifacts enabled
"""
keys = st.sampled_from(KEYS.split()) | st.text(max_size=5)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
)
SHAPES = {
    "skopeo": lambda it: {"quay.io": {"images": {"a/bc": it}, "images-by-tag-regex": {"x/y": it}, "credentials": it}},
    "regsync": lambda it: {"creds": [it], "defaults": it,
                          "sync": [it, {"source": it, "target": "a/bc", "type": "image"},
                                   {"source": "a/b", "target": "a/bc", "type": "repository", "tags": it}]},
    "image-syncer": lambda it: {"auth": {"quay.io": it}, "images": {"quay.io/a/b": it, str(it): "a/bc"}},
    "dregsy": lambda it: {"tasks": [it, {"source": {"registry": "x.io", "auth": it}, "target": {"registry": "y.io"},
                                         "mappings": [it, {"from": "a/bc", "tags": [it], "platform": it}]}]},
    "ocync": lambda it: {"registries": {"a": {"url": it}, "b": it}, "target_groups": it, "defaults": it,
                         "mappings": [it, {"from": "a/bc", "source": "a", "targets": ["a"], "tags": it}]},
    "list": lambda it: it,
}  # fmt: skip


@given(st.sampled_from(FORMATS), documents, st.booleans())
def test_any_document_is_a_plan_or_an_error(form: Format, document: Any, shaped: bool) -> None:
    whole = SHAPES[form](document) if shaped else document
    for text in (json.dumps(whole), yaml.safe_dump(whole), yaml.safe_dump(whole).replace("'", "")):
        try:
            done = import_plan(text, "file", form=form)
        except UsageError:
            continue
        assert parse_plan(done.text, None, Everything()).entries


@given(st.text())
def test_any_text_is_an_import_or_an_error(text: str) -> None:
    try:
        done = import_plan(text, "file")
    except UsageError:
        return
    assert parse_plan(done.text, None, Everything()).entries


def test_regsync_s_alternatives_are_anchored_as_it_does() -> None:
    tags = "{deny: ['rc|beta', 'x|(?:y)'], allow: ['[a-z].*|1', '(?i)Z|Q']}"
    _, plan = imported("regsync", f"sync: [{{source: a.io/b/c, target: {EU}/b/c, type: repository, tags: {tags}}}]")

    # It puts ^ before and $ behind the expression as it is: ^rc|beta$ is what begins with rc, or ends in beta.
    listed = ("rc", "rc-1", "v-beta", "beta-v", "x1", "2-y", "2", "2-1", "v1", "Z9")
    assert taken(plan.entries[0], *listed) == ["beta-v", "2-1", "v1", "Z9"]


#: What Go's own regexp.MatchString finds among these tags.
GO_TAGS = "1 12 1.2 1x2 v1 v1.2 v1.23 vRC vrc Vrc beta BETA rc a aa a-b ab A 1-rc latest"
GO_PATTERNS = {
    r"^[[:digit:]]+$": "1 12",
    r"[^[:alpha:].]": "1 12 1.2 1x2 v1 v1.2 v1.23 a-b 1-rc",
    r"^a{,2}": "",
    r"\Av1\z": "v1",
    r"^v1\.\d\z": "v1.2",
    r"\Q1.2\E$": "1.2 v1.2",
    r"\Q.+": "",
    r"^v(?i)RC|Beta$": "vRC vrc beta BETA",
    r"(?i)^v(?-i:rc)": "vrc Vrc",
    r"^(?P<major>\d+)\.(?<minor>\d+)$": "1.2",
    r"^\pL+$": "vRC vrc Vrc beta BETA rc a aa ab A latest",
    r"^\p{Lu}|\p{Nd}$": "1 12 1.2 1x2 v1 v1.2 v1.23 Vrc BETA A",
    r"^\PL+$": "1 12 1.2",
    r"^[\pL-]+$": "vRC vrc Vrc beta BETA rc a aa a-b ab A latest",
    r"(?U)^v.*$": "v1 v1.2 v1.23 vRC vrc",
    r"(?ms)^v1$": "v1",
    r"^[a&&b]+$": "a aa ab",
    r"^\x76\x{31}\056": "v1.2 v1.23",
    r"^a*?$": "a aa",
    r"^[]a]$": "a",
    r"[\d-]rc": "1-rc",
}


@pytest.mark.parametrize("pattern", GO_PATTERNS)
@pytest.mark.filterwarnings("error::FutureWarning")
def test_an_expression_matches_what_go_finds(pattern: str) -> None:
    document = json.dumps({"a.io": {"images-by-tag-regex": {"b/dd": pattern}}})
    _, plan = imported("skopeo", document)

    assert taken(plan.entries[0], *GO_TAGS.split()) == GO_PATTERNS[pattern].split()


@pytest.mark.parametrize(
    "pattern",
    [
        "a++", "(?=a)", "(?!a)", "(?<=a)b", r"\Z", r"\h", r"(a)\1", r"[\b]", "a**", "(?P=n)", "(?#c)", "(?>a)", "[b-a]",
        "[[:no:]]", r"\u0041", "a{1001}", "(?x)a b", r"a\E", "(a", "a)", "[a", "a\\", r"\p{Greek}", r"(?i)\P{Lu}",
    ],
)  # fmt: skip
def test_an_expression_that_can_t_be_carried_over_is_told(pattern: str) -> None:
    document = json.dumps({"a.io": {"images": {"b/cc": []}, "images-by-tag-regex": {"b/dd": pattern}}})
    done, plan = imported("skopeo", document)

    assert [entry.source for entry in plan.entries] == ["a.io/b/cc"]
    assert any(note.startswith("a.io, b/dd: regex: ") and note.endswith("not imported") for note in done.notes)


@given(st.text(st.sampled_from("ab1.-^$|()[]{}*+?\\QEzAdpLi:,P<>!=&~ "), max_size=14))
def test_any_expression_is_one_of_python_or_a_value_error(pattern: str) -> None:
    try:
        whole = whole_match(pattern, anchored=False)
    except ValueError:
        return
    assert re.compile(whole)


def test_the_filters_of_dregsy_s_readme_take_what_it_says() -> None:
    filters = ["semver: >=1.31.0 <1.31.9", r"regex: 1\.26\.[0-9]-(glibc|uclibc|musl)", "1.29.4", "latest"]
    pruned = ["latest", "semver: >=2.0.0", "keep: .+-(alpine|buster)"]
    mappings = [{"from": "a/any", "tags": filters}, {"from": "a/pruned", "tags": pruned}]
    task = {"source": {"registry": "a.io", "auth": "none"}, "target": {"registry": EU}, "mappings": mappings}
    _, plan = imported("dregsy", json.dumps({"tasks": [task]}))
    some, kept = plan.entries

    listed = ("1.31.1", "1.31.9", "1.26.1-glibc", "1.26.1-x", "1.29.4", "latest", "1.20", "x1.26.1-musl")
    assert taken(some, *listed) == ["1.29.4", "latest", "1.31.1", "1.26.1-glibc"]
    listed = ("latest", "2.1.4-buster", "2.1.4", "1.9.0-alpine", "3.0.0-alpine", "edge-alpine")
    assert taken(kept, *listed) == ["latest", "2.1.4-buster", "3.0.0-alpine"]
    assert plan.source_registries["a.io"].anonymous


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("1.2.3", "1.2.3 v1.2.3", "1.2.4 1.2.3-a"),
        (">=1.2.0 <2.0.0", "1.2.0 1.9.9-a 2.0.0-a", "1.2.0-a 2.0.0"),
        (">= 1.2.0 !1.3.0", "1.2.0 1.3.1", "1.3.0"),
        ("<1.0.0 || >=3.0.0", "0.9 1.0.0-a 3.1", "1.0.0 3.0.0-a"),
        ("1.2.x", "1.2.0 1.2.9-a 1.3.0-a", "1.3.0 1.2.0-a"),
        (">1.x <=3.1.x", "2.0.0 3.1.9", "1.9 3.2.0"),
    ],
)
def test_dregsy_s_ranges_take_pre_releases_as_versions(text: str, inside: str, outside: str) -> None:
    parsed = VersionRange.parse(str(dregsy_range(text, "semver")))

    def holds(tag: str) -> bool:
        version = Version.parse(tag)
        return version is not None and parsed.matches(version)

    assert [tag for tag in inside.split() if not holds(tag)] == []
    assert [tag for tag in outside.split() if holds(tag)] == []


@pytest.mark.parametrize("text", ["", ">1.2", "^1.2.3", "~1.2.3", "1.2", "!=1.x", ">=1.0.0, <2.0.0", ">=a", "||"])
def test_a_range_that_dregsy_does_not_read_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="not a version range"):
        dregsy_range(text, "semver")


def test_ocync_s_ranges_are_of_numbers_alone_and_prereleases_are_left_out() -> None:
    def plan_of(tags: dict[str, Any], *, soft: Sequence[str] = ()) -> PlanEntry:
        registries = {"a": {"url": "a.io"}, "b": {"url": EU}}
        mapping = {"from": "x/y", "source": "a", "targets": "b", "tags": tags}
        defaults = {"tags": {"exclude": list(soft)}}
        document = {"registries": registries, "defaults": defaults, "mappings": [mapping]}
        return imported("ocync", json.dumps(document))[1].entries[0]

    listed = ("1.0", "1.0-alpine", "1.5-RC1", "2.0-slim", "2.0", "2.1-r1", "latest", "latest-dev", "3", "2.0-nightly")
    assert taken(plan_of({"semver": ">=1.0, <=2.0"}), *listed) == ["1.0", "1.0-alpine", "2.0-slim", "2.0"]
    assert taken(plan_of({"semver": ">1.0,<2.1"}), *listed) == ["2.0-slim", "2.0"]
    assert taken(plan_of({"semver": "=2.0"}), *listed) == ["2.0-slim", "2.0"]
    soft = ["*-slim", "*-dev"]
    assert taken(plan_of({"glob": "2*"}, soft=soft), *listed) == ["2.0", "2.1-r1"]
    # What include has by pattern is spared the soft excludes, by name all but the mapping's own.
    assert taken(plan_of({"glob": "3", "include": ["*-slim", "*-rc*"]}, soft=soft), *listed) == ["2.0-slim", "3"]
    include = {"semver": ">=2.1", "include": ["latest", "latest-dev", "1.0"], "exclude": ["1*"]}
    assert taken(plan_of(include, soft=soft), *listed) == ["latest", "latest-dev", "2.1-r1", "3"]
    assert taken(plan_of({"glob": "[^12l]*"}), *listed) == ["3"]


def test_ocync_s_variables_and_logins_are_a_plan_s() -> None:
    text = """\
registries:
  hub: {url: "${HUB:-docker.io}", auth_type: anonymous}
  quay: {url: quay.io, auth_type: basic, credentials: {username: "u-${U}", password: "${TOKEN}"}}
  ecr: {url: "${ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com"}
mappings:
- {from: "${NS}/app", to: "m/${NS:?say which}-x", source: quay, targets: [ecr], tags: {glob: "${TAG:-v}*"}}
- {from: lib/b, source: hub, targets: [ecr], tags: {glob: "*"}}
"""
    done = import_plan(text, "file")
    environ = {"U": "me", "TOKEN": "t", "ACCOUNT": "123456789012", "NS": "ns"}

    plan = parse_plan(done.text, None, environ)
    assert [(goal.target.registry.host, goal.repository) for entry in plan.entries for goal in entry.goals] == [
        (EU, "m/ns-x"),
        (EU, "lib/b"),
    ]
    assert [entry.location for entry in plan.entries] == ["docker://quay.io/ns/app", "docker://docker.io/lib/b"]
    assert plan.entries[0].tags.patterns.glob == ("v*",)
    credentials = plan.source_registries["quay.io"].credentials
    assert credentials is not None
    assert (credentials.username, credentials.password) == ("u-me", "t")
    assert any("registries[hub] has a variable for its host" in note for note in done.notes)


def test_image_syncer_variables_of_destinations_and_logins_count() -> None:
    """image-syncer's variables count in destinations and in its own logins."""
    text = f"""\
quay.io/a/b:v1: {EU}/a/b:ci-${{U}}
quay.io/a/c: "{EU}/$NS/c-${{U}}x"
quay.io/a/f@sha256:{HEX}: {EU}/a/f:$U
quay.io/a/${{lit}}: {EU}/a/d
quay.io/a/d:v1: {EU}/a/d:$$
quay.io/a/e:v1: $REGISTRY/a/e
"""
    done = import_plan(text, "file", auth='{"quay.io": {"username": "bot-$U", "password": "${TOKEN}"}}')
    plan = parse_plan(done.text, None, {"U": "u1", "NS": "ns", "TOKEN": "t"})

    assert goals(plan) == [
        ("quay.io/a/b:v1", "a/b", "ci-u1"),
        ("quay.io/a/c", "ns/c-u1x", None),
        (f"quay.io/a/f@sha256:{HEX}", "a/f", "u1"),
    ]
    credentials = plan.source_registries["quay.io"].credentials
    assert credentials is not None
    assert (credentials.username, credentials.password) == ("bot-u1", "t")
    told(
        done,
        "quay.io/a/$${lit}: 'a/${lit}' is not a repository name",
        "quay.io/a/d:v1: '$$' has $$, which is not a plan variable",
        "quay.io/a/e:v1: $REGISTRY may be a registry",
    )
    # In its older file, which has images, too, a login means itself.
    whole = {"auth": {"quay.io": {"username": "$U", "password": "$TOKEN"}}, "images": {"quay.io/a/b": f"{EU}/a/b"}}
    done = import_plan(json.dumps(whole), "file")
    credentials = parse_plan(done.text, None, {"QUAY_IO_PASSWORD": "p"}).source_registries["quay.io"].credentials
    assert credentials is not None
    assert (credentials.username, credentials.password) == ("$U", "p")


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        ("quay.io/a/b", "a/b:v1", "it may have any number of tags, and its destination has 1"),
        ("quay.io/a/b:/v.*/", "a/b:v1", "it may have any number of tags, and its destination has 1"),
        (f"quay.io/a/b@sha256:{HEX}", f"a/b@sha256:{'0' * 64}", "it has one digest, and its destination another"),
        ("quay.io/a/b:v1", f"a/b@sha256:{HEX}", "its destination is a digest"),
        ("quay.io/a/b", "", f"the destination '{EU}/' names no repository"),
        ("quay.io/a/b:v1", ":v1", f"the destination '{EU}/:v1' names no repository"),
    ],
)
def test_what_image_syncer_can_t_pair_is_told(source: str, destination: str, words: str) -> None:
    done, plan = imported("image-syncer", json.dumps({source: f"{EU}/{destination}", "quay.io/x/y": f"{EU}/x/y"}))

    assert [entry.source for entry in plan.entries] == ["quay.io/x/y"]
    told(done, f"{source}: {words}; not imported")


def test_image_syncer_drops_a_tag_beside_a_digest() -> None:
    text = json.dumps({f"quay.io/a/b:v1@sha256:{HEX}": f"{EU}/a/b", "quay.io/a/c:v1": "library/c"})
    done, plan = imported("image-syncer", text)

    assert goals(plan) == [(f"quay.io/a/b@sha256:{HEX}", "a/b", None), ("quay.io/a/c", "library/c", None)]
    told(done, "docker.io is not an ECR registry")


def test_an_image_that_image_syncer_sends_nowhere_is_told() -> None:
    done, plan = imported("image-syncer", f'{{"quay.io/a/b": [], "quay.io/a/c": "{EU}/a/c"}}')

    assert [entry.source for entry in plan.entries] == ["quay.io/a/c"]
    told(done, "quay.io/a/b: it has no destination; not imported")


def test_no_password_of_an_address_is_told() -> None:
    sync = "\n".join(
        f"- {{source: '{source}', target: '{EU}/x', type: repository}}"
        for source in ("https://me:s3cret@quay.io/a/b", "docker://me:s3cret@quay.io/a/b", "me:s3cret@quay.io/a/b")
    )
    text = f"creds: [{{registry: 'https://me:s3cret@quay.io', user: me, pass: s3cret}}]\nsync:\n{sync}\n"
    with pytest.raises(UsageError) as caught:
        import_plan(text, "file")
    assert "s3cret" not in str(caught.value)
    done, _ = imported("regsync", f"{text}- {{source: a.io/b/c, target: {EU}/b/c, type: repository}}\n")

    assert sum("me:***@quay.io" in note for note in done.notes) == 4
