"""``asyncpush ecr`` beside the real ``aws ecr``: the same words, the same output, version 2's exit statuses."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.aws_cases import CASES, VERSION_1, Answered, Side, make_side, run_aws_cli, write_files
from support.commands import Ran, Server, cli_environment, run_cli, run_here


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def judged(side: Side, theirs: Answered, ours: Ran, our_side: Side, number: int) -> list[str]:
    """What is wrong with our answer to a case."""
    case = CASES[number]
    wrong = []
    if ours.status != case.status or (theirs.status not in VERSION_1[case.status] and not case.differs):
        wrong.append(f"status {ours.status}, not {case.status}; version 1: {theirs.status}\n{ours.err}{theirs.err}")
    if not case.differs:
        if side.neutral(theirs.out) != our_side.neutral(ours.out):
            wrong.append(f"--- theirs\n{side.neutral(theirs.out)}--- ours\n{our_side.neutral(ours.out)}---")
        garbled = "{self._error_location()}" in theirs.err  # awscli 1.45.11 forgets to fill it in
        if not garbled and last_line(side.neutral(theirs.err)) != last_line(our_side.neutral(ours.err)):
            wrong.append(f"--- their message\n{theirs.err}--- ours\n{ours.err}---")
    return [f"{case.words}\n{each}" for each in wrong]


def test_every_command_is_answered_as_aws_answers_it(
    server: Server, need: Callable[[str], str], tmp_path: Path
) -> None:
    aws = need("aws")
    write_files(tmp_path)
    configuration = tmp_path / "config"
    configuration.write_text("[default]\ncli_timestamp_format = iso8601\n")
    environment = {
        **server.environment,
        "AWS_ENDPOINT_URL_ECR_PUBLIC": server.url,
        "AWS_CONFIG_FILE": str(configuration),
    }
    their_side = make_side(server.url, environment, "eu-west-2", tmp_path)
    our_side = make_side(server.url, environment, "eu-west-3", tmp_path)

    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(run_aws_cli, aws, their_side, cli_environment())
        # Where no credentials are given, botocore looks for some on disk, on the event loop.
        ours = [
            (run_cli if case.status == 253 else run_here)(*our_side.words(case), **our_side.variables(case))
            for case in CASES
        ]
        theirs = running.result()

    assert len(CASES) >= 60
    wrong = [
        each
        for number in range(len(CASES))
        for each in judged(their_side, theirs[number], ours[number], our_side, number)
    ]
    assert not wrong, "\n\n".join(wrong)
