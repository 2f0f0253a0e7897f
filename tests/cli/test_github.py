"""What GitHub Actions shows of a push and a migration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.commands import Ran, Server, run_here
from support.images import Layout


@pytest.fixture
def variables(server: Server, tmp_path: Path) -> dict[str, str]:
    """The environment of a step."""
    files = {"GITHUB_OUTPUT": "output", "GITHUB_STEP_SUMMARY": "summary"}
    return {
        **server.environment,
        "GITHUB_ACTIONS": "true",
        **{name: str(tmp_path / file) for name, file in files.items()},
    }


def outputs(path: Path) -> dict[str, str]:
    """The outputs of a step, as GitHub reads them."""
    found, lines = {}, iter(path.read_text().splitlines())
    for line in lines:
        name, _, end = line.partition("<<")
        value = []
        while (line := next(lines)) != end:
            value.append(line)
        found[name] = "\n".join(value)
    return found


def layout(folder: Path, words: str) -> str:
    made = Layout()
    made.tag(made.image(words.encode()), "1").write(folder)
    return f"oci:{folder}"


def push(*words: str, **variables: str) -> Ran:
    return run_here("push", *words, "--create-repository", "--progress", "plain", **variables)


def test_a_push_sets_outputs_and_writes_a_summary(variables: dict[str, str], tmp_path: Path) -> None:
    ran = push(layout(tmp_path / "app", "github"), "github/app:1", "--tag", "latest", "-v", **variables)

    names = ran.out.split()
    assert ran.status == 0, ran.err
    group = ran.err.splitlines()
    assert (group[0], group.count("::endgroup::")) == ("::group::Progress", 1)
    assert any(line.startswith("pushed ") for line in group[: group.index("::endgroup::")])
    assert group[-1].startswith("asyncpush: 2 images: 2 pushed; ")
    assert outputs(tmp_path / "output") == {
        "digest": names[0].partition("@")[2],
        "image": names[0],
        "images": "\n".join(names),
    }
    table = (tmp_path / "summary").read_text()
    assert table.startswith("| image | | digest | sent |\n| --- | --- | --- | ---: |\n| `github/app:1` | pushed | `")
    assert table.count("\n") == 5


def test_a_failure_is_an_annotation_and_a_row(variables: dict[str, str], tmp_path: Path) -> None:
    plan = {"version": 1, "images": [{"from": layout(tmp_path / "app", "100% <b> | new"), "to": "github/nowhere"}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    ran = run_here("migrate", tmp_path / "plan.json", "--no-resume", "--progress", "none", **variables)

    assert ran.status == 1
    assert "::error title=asyncpush::github/nowhere:1: repository github/nowhere does not exist" in ran.err
    assert "asyncpush: error" not in ran.err
    assert outputs(tmp_path / "output") == {"digest": "", "image": "", "images": ""}
    assert (
        "| `github/nowhere:1` | failed | repository github/nowhere does not exist" in (tmp_path / "summary").read_text()
    )


def test_a_summary_that_cannot_be_written_is_a_note(variables: dict[str, str], tmp_path: Path) -> None:
    variables["GITHUB_STEP_SUMMARY"] = str(tmp_path)

    ran = push(layout(tmp_path / "app", "note"), "github/note:1", **variables)

    assert ran.status == 0
    assert f"asyncpush: note: {tmp_path} can't be written" in ran.err


def test_elsewhere_nothing_is_written(server: Server, tmp_path: Path) -> None:
    ran = push(layout(tmp_path / "app", "elsewhere"), "github/elsewhere:1", **server.environment)

    assert ran.status == 0
    assert "::" not in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app"]
