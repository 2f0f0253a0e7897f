"""``asyncpush plan``: what it prints where, and with which status it exits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from support.commands import run_cli, run_here

EU = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"

PLAN = f"""\
version: 1
registries: {{docker.io: {{credentials: {{username: me, password: "${{TOKEN}}"}}}}, quay.io: {{}}}}
targets: {{eu: {{registry: {EU}, prefix: mirror}}, own: {{}}, public: {{registry: public.ecr.aws/alias}}}}
images:
- {{from: nginx, tags: ["1"], targets: [eu, own]}}
- {{from: redis, targets: eu}}
- {{from: ghcr.io/a/b, targets: public}}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def test_a_good_plan_is_summed_up(plan: Path) -> None:
    done = run_here("plan", "check", plan, TOKEN="s3cret")

    assert (done.status, done.err) == (0, "asyncpush: note: registries: no entry reads from quay.io\n")
    assert done.out == (
        f"{plan}: 3 entries, 1 of them by name\n"
        "  from docker.io: 2 entries\n"
        "  from ghcr.io: 1 entry\n"
        f"  to eu ({EU}/mirror): 2 entries\n"
        "  to own (your own registry): 1 entry\n"
        "  to public (public.ecr.aws/alias): 1 entry\n"
    )


def test_a_plan_can_be_checked_where_its_secrets_are_not(plan: Path) -> None:
    lacking = "registries[docker.io].credentials.password: the environment variable TOKEN is not set"

    done = run_here("plan", "check", plan, TOKEN="")
    assert done.status == 0
    assert f"asyncpush: warning: {plan}:2:54: {lacking}, and what depends on it is not checked\n" in done.err
    assert f"{plan}: 3 entries" in done.out

    plan.write_text(PLAN.replace('["1"]', '["${TOKEN}"]').replace("from: redis", "from: Redis"))
    wrong = run_here("plan", "check", plan, TOKEN="")
    assert wrong.status == 2
    assert [line.split(": ")[3] for line in wrong.err.splitlines()] == ["images[1].from"]

    insisted = run_here("plan", "check", "--env", plan, TOKEN="")
    assert insisted.status == 2
    assert lacking in insisted.err


def test_each_problem_has_a_line_with_its_position_and_the_status_is_2(plan: Path) -> None:
    written = PLAN.replace('["1"]', "{semver: [x.y], newest: 0}")
    plan.write_text(written)
    done = run_here("plan", "check", "--env", plan, TOKEN="")

    assert (done.status, done.out) == (2, "")
    found = [re.match(r"asyncpush: error: (.+?):(\d+):(\d+): (\S+): ", line) for line in done.err.splitlines()]
    assert [(match[1], match[4]) for match in found if match] == [
        (str(plan), "registries[docker.io].credentials.password"),
        (str(plan), "images[0].tags.semver[0]"),
        (str(plan), "images[0].tags.newest"),
    ]
    there = [written.splitlines()[int(match[2]) - 1][int(match[3]) - 1 :] for match in found if match]
    assert [text.partition(":")[0] for text in there] == ["password", "x.y], newest", "newest"]

    plan.write_text("version: 1\nimages: [\n")
    for words in (("plan", "check"), ("migrate",)):
        annotated = run_here(*words, plan, GITHUB_ACTIONS="true")
        assert annotated.err.startswith(
            f"::error title=asyncpush,file={plan},line=3,col=1::{plan}:3:1: this is not YAML"
        )


@pytest.mark.parametrize(
    "words", [["plan", "check"], ["plan", "check", "no-such.yaml"], ["plan", "nonsense"], ["plan", "import"]]
)
def test_wrong_usage_is_a_line_and_status_2(words: list[str]) -> None:
    done = run_here(*words)

    assert done.status == 2
    assert done.out == ""
    assert done.err.startswith("asyncpush: error: ")
    assert done.err.count("\n") == 1


def test_a_plan_comes_by_standard_input() -> None:
    piped = run_cli("plan", "check", "-", stdin=PLAN.encode(), TOKEN="x")

    assert piped.status == 0
    assert piped.out.startswith("standard input: 3 entries")


def test_an_import_goes_to_standard_output_and_passes_as_a_plan(tmp_path: Path) -> None:
    (tmp_path / "sync.yaml").write_text(
        "quay.io:\n  images: {team/app: ['1.0']}\n  credentials: {username: me, password: s3cret}\n  extra: 1\n"
    )
    done = run_here("plan", "import", tmp_path / "sync.yaml", "--to", f"{EU}/mirror", "--scoped")
    (tmp_path / "plan.yaml").write_text(done.out)
    checked = run_here("plan", "check", tmp_path / "plan.yaml", QUAY_IO_PASSWORD="s3cret")

    assert done.status == checked.status == 0
    assert "s3cret" not in done.out + done.err
    notes = done.err.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert any("set the environment variable QUAY_IO_PASSWORD" in note for note in notes)
    assert any("quay.io].extra" in note or "quay.io.extra" in note for note in notes)
    assert "from: quay.io/team/app\n    to: quay.io/team/app" in done.out
    assert f"to eu-west-1-123456789012 ({EU}/mirror): 1 entry" in checked.out


def test_an_import_takes_a_format_a_second_file_and_standard_input(tmp_path: Path) -> None:
    (tmp_path / "auth.yaml").write_text("quay.io: {username: me, password: $TOKEN}\n")
    text = f"quay.io/a/bc: {EU}/a/bc\n"
    done = run_cli(
        "plan", "import", "-", "--format", "image-syncer", "--auth", tmp_path / "auth.yaml", stdin=text.encode()
    )

    assert (done.status, done.err) == (0, "")
    assert 'password: "${TOKEN}"' in done.out


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (PLAN, [], "is already a plan"),
        ("a: b", [], "is none of skopeo"),
        ("quay.io: {images: {a: []}}", ["--to", "https://x"], "begins with https://"),
        ("quay.io: {images: {a: []}}", ["--format", "helm"], "helm"),
        ("quay.io: {images: {a/bc: []}}", ["--to", f"{EU}/UPPER"], "'UPPER' can't be the beginning"),
    ],
)
def test_an_import_that_fails_is_a_line(tmp_path: Path, text: str, words: list[str], message: str) -> None:
    (tmp_path / "file.yaml").write_text(text)
    done = run_here("plan", "import", tmp_path / "file.yaml", *words)

    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_the_schema_is_printed() -> None:
    done = run_here("plan", "schema")

    assert (done.status, done.err) == (0, "")
    schema = json.loads(done.out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["version", "images"]


@pytest.mark.parametrize("words", [[], ["check"], ["import"], ["schema"]])
def test_help_says_what_each_does(words: list[str]) -> None:
    done = run_here("plan", *words, "--help")

    assert done.status == 0
    assert done.out.startswith(f"Usage: asyncpush {' '.join(['plan', *words])}")
