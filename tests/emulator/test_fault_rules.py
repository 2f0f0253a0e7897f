"""Faults as text: rules, throttles, durations, rates and documents read back as they were written, or are refused."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.ecr.quotas import QUOTAS
from asyncpush.emulator.faults import Fault, FaultConfig, Throttle, parse_fault, parse_throttle
from asyncpush.emulator.faults.config import FaultConfigDocument, describe, read_file, read_json
from asyncpush.emulator.faults.rules import ACTIONS
from asyncpush.emulator.faults.throttles import AWS_QUOTAS, Throttles
from asyncpush.errors import UsageError
from asyncpush.redaction import shown
from asyncpush.units import format_duration, format_rate, parse_duration, parse_rate
from support.commands import run_here

COUNTS = st.none() | st.integers(1, 10**6)
POSITIVE = st.floats(1e-6, 1e9)
OPERATIONS = {
    "availability": ["BatchCheckLayerAvailability", "Batch*"],
    "layers-not-found": ["PutImage", "*"],
    "upload-expired": ["UploadLayerPart", "*Layer*"],
    "reset-during": ["v2:PATCH-upload", "v2:*"],
    "range-invalid": ["v2:PUT-upload", "*"],
    "stall": ["v2:GET-blob", "v2:*"],
    "retry-after": ["v2:PUT-*", "*"],
    "unauthorized": ["v2:*", "v2:GET-blob"],
}


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    action = draw(st.sampled_from(sorted(ACTIONS)))
    return Fault(
        operation=draw(
            st.sampled_from(OPERATIONS.get(action, ["*", "PutImage", "v2:GET-blob", "v2:*", "Put[IX]mage"]))
        ),
        action=action,
        repository=draw(st.sampled_from(["*", "team/*", "app", "a=b"])),
        nth=draw(COUNTS),
        every=draw(COUNTS),
        first=draw(COUNTS),
        after=draw(st.none() | st.integers(0, 100)),
        probability=draw(st.none() | st.floats(0, 1)),
        limit=draw(COUNTS),
        lag=draw(st.none() | POSITIVE) if action == "layers-not-found" else None,
        seconds=draw(POSITIVE) if action in ("slow-reply", "stall", "retry-after") else None,
        size=draw(st.integers(1, 10**12)) if action == "reset-during" else None,
        available=draw(st.booleans()) if action == "availability" else None,
    )


throttles = st.builds(Throttle, st.sampled_from(["*", "PutImage", "v2:GET-*"]), POSITIVE, COUNTS)


@given(faults())
def test_a_rule_reads_back_as_it_is_written(fault: Fault) -> None:
    assert parse_fault(str(fault)) == fault


@given(throttles)
def test_a_throttle_reads_back_as_it_is_written(throttle: Throttle) -> None:
    assert parse_throttle(str(throttle)) == throttle


@given(st.floats(0, 1e9))
def test_a_duration_and_a_rate_read_back_as_they_are_written(number: float) -> None:
    assert parse_duration(format_duration(number)) == number
    if number:
        assert parse_rate(format_rate(number)) == number


@given(
    st.builds(
        FaultConfig,
        latency=st.floats(0, 10),
        jitter=st.floats(0, 10),
        bandwidth=st.none() | POSITIVE,
        throttles=st.lists(throttles, max_size=3).map(tuple),
        quotas=st.sampled_from([None, "aws"]),
        faults=st.lists(faults(), max_size=3).map(tuple),
        seed=st.none() | st.integers(-5, 5),
    )
)
def test_a_fault_config_reads_back_from_its_document(fault_config: FaultConfig) -> None:
    assert read_json(msgspec.json.encode(describe(fault_config))).fault_config() == fault_config


@given(st.text(alphabet=st.sampled_from("PutImage:,=*v2.-09nthfirst\n \x00é[")) | st.text())
def test_any_text_is_a_rule_or_is_refused_in_one_line_that_quotes_it(text: str) -> None:
    for parse in (parse_fault, parse_throttle):
        refusal = None
        try:
            parse(text)
        except UsageError as error:
            refusal = str(error)
        assert refusal is None or (shown(repr(text)) in refusal and "; " in refusal and "\n" not in refusal)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("CompleteLayerUpload:nth=3:lost-reply", Fault("CompleteLayerUpload", "lost-reply", nth=3)),
        ("UploadLayerPart:probability=0.01:reset-before", Fault("UploadLayerPart", "reset-before", probability=0.01)),
        (
            "PutImage,repository=team/*:first=2:layers-not-found",
            Fault("PutImage", "layers-not-found", repository="team/*", first=2),
        ),
        ("PutImage:lag=250ms:layers-not-found", Fault("PutImage", "layers-not-found", lag=0.25)),
        ("v2:GET-blob:every=2,limit=4:unavailable", Fault("v2:GET-blob", "unavailable", every=2, limit=4)),
        ("v2:GET-blob:every=2:limit=4:unavailable", Fault("v2:GET-blob", "unavailable", every=2, limit=4)),
        ("*:slow-reply=1.5", Fault("*", "slow-reply", seconds=1.5)),
        ("Batch*:availability=UNAVAILABLE", Fault("Batch*", "availability", available=False)),
        ("v2:PATCH-upload:nth=2:reset-during=3MiB", Fault("v2:PATCH-upload", "reset-during", nth=2, size=3 * 2**20)),
        ("v2:*:limit=1:retry-after=2s", Fault("v2:*", "retry-after", limit=1, seconds=2)),
    ],
)
def test_a_rule_means_what_it_says(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


WRONG = {
    "--fault": {
        "": "the action is missing",
        "PutImage": "the action is missing",
        "PutImage:": "the action is missing",
        "CompleteLayerUplod:throttle": "did you mean CompleteLayerUpload?",
        "v2:FETCH-blob:throttle": "did you mean v2:",
        "PutImage:explode": "use one of: throttle, ",
        "PutImage:nht=3:throttle": "use one of: nth, ",
        "PutImage:nth:throttle": "write nth=VALUE",
        "PutImage:nth=0:throttle": "use 1 or more",
        "PutImage:nth=-1:throttle": "use a whole number",
        "PutImage:nth=1:nth=2:throttle": "nth is given twice",
        "PutImage:probability=2:throttle": "use 0 to 1",
        "PutImage:probability=often:throttle": "use a number from 0 to 1",
        "PutImage:slow-reply": "write slow-reply=SECONDS",
        "PutImage:slow-reply=soon": "use a number with ms, s",
        "PutImage:throttle=2": "write throttle",
        "v2:PATCH-upload:reset-during": "write reset-during=BYTES",
        "v2:PATCH-upload:reset-during=0": "use 1 byte or more",
        "v2:PATCH-upload:reset-during=half": "use a number with KiB, MiB or GiB",
        "v2:GET-blob:reset-during=1MiB": "use it for v2:POST-upload or v2:PATCH-upload or v2:PUT-upload",
        "UploadLayerPart:stall=1": "use it for v2:*",
        "PutImage:availability=AVAILABLE": "use it for BatchCheckLayerAvailability",
        "BatchCheckLayerAvailability:availability=MAYBE": "availability=UNAVAILABLE",
        "v2:GET-blob:upload-expired": "use it for UploadLayerPart or CompleteLayerUpload or v2:*-upload",
        "PutImage:lag=1:throttle": "lag applies to layers-not-found only",
    },
    "--throttle": {
        "PutImage": "such as PutImage=10:20",
        "PutImage=fast": "such as PutImage=10:20",
        "PutImage=0": "more than 0",
        "PutImage=1:0": "use 1 or more",
        "PutImag=1": "did you mean PutImage?",
    },
    "--latency": {"40": "use a number with ms, s", "-1s": "use a number with ms, s", "1e999s": "invalid duration"},
    "--jitter": {"soon": "use a number with ms, s"},
    "--bandwidth": {"30": "use 30MB/s", "0MB/s": "use 30MB/s", "1XB/s": "use 30MB/s"},
    "--quotas": {"gcp": "--quotas"},
    "--fault-config": {"no/such/file.yaml": "No such file"},
}


@pytest.mark.parametrize(("option", "text"), [(option, text) for option in WRONG for text in WRONG[option]])
def test_what_is_wrong_is_told_in_one_line_before_anything_listens(option: str, text: str) -> None:
    done = run_here("serve", "--port", "0", f"{option}={text}")

    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("asyncpush: error: ")
    assert done.err.count("\n") == 1
    assert text in done.err
    assert WRONG[option][text] in done.err


YAML = """\
latency: 40ms
bandwidth: 30MB/s
quotas: aws
throttle: [PutImage=5:10]
fault:
  - CompleteLayerUpload:nth=3:lost-reply   # a comment
  - "*:probability=0.01:reset-before"
seed: 7
"""


def test_a_file_says_the_same_in_yaml_and_in_json(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(YAML)
    read = read_file(tmp_path / "bad.yaml")
    (tmp_path / "bad.json").write_bytes(msgspec.json.encode(read))
    (tmp_path / "json.yaml").write_bytes(msgspec.json.encode(read))

    assert read.fault_config() == FaultConfig(
        latency=0.04,
        bandwidth=30e6,
        quotas="aws",
        throttles=(Throttle("PutImage", 5, 10),),
        faults=(Fault("CompleteLayerUpload", "lost-reply", nth=3), Fault("*", "reset-before", probability=0.01)),
        seed=7,
    )
    assert read_file(tmp_path / "bad.json") == read_file(tmp_path / "json.yaml") == read


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.yaml", "latency: [", "a.yaml"),
        ("a.yaml", "fault:\n  - *:throttle", "needs quotes"),
        ("a.yaml", "faults: []", "`faults`"),
        ("a.yaml", "- 1", "Expected `object`"),
        ("a.json", "{", "a.json"),
        ("a.json", '{"latency": 40}', "$.latency"),
        ("a.json", '{"fault": ["PutImage:explode"]}', "'PutImage:explode'"),
        ("a.json", "\xff", "a.json"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path: Path, name: str, text: str, named: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))

    done = run_here("serve", "--port", "0", "--fault-config", tmp_path / name)

    assert (done.status, done.out) == (2, "")
    assert re.fullmatch(r"asyncpush: error: [^\n]+; [^\n]+\n", done.err)
    assert named in done.err


def test_options_come_before_what_the_file_says() -> None:
    options = FaultConfigDocument(latency="1s", fault=("PutImage:throttle",), seed=0)
    file = FaultConfigDocument(latency="2s", jitter="3s", fault=("*:throttle",), seed=5)
    assert options.over(file) == FaultConfigDocument(
        latency="1s", jitter="3s", fault=("PutImage:throttle", "*:throttle"), seed=0
    )


@pytest.mark.parametrize(
    "members",
    [{"latency": -1}, {"jitter": float("nan")}, {"bandwidth": 0}, {"bandwidth": float("inf")}],
)
def test_an_impossible_fault_is_refused(members: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"invalid {next(iter(members))}"):
        FaultConfig(**members)  # type: ignore[arg-type]


@pytest.mark.parametrize("repository", ["", "a:b", "a,b", "a b"])
def test_a_repository_that_no_rule_could_be_written_with_is_refused(repository: str) -> None:
    with pytest.raises(UsageError, match="invalid repository"):
        Fault("*", "throttle", repository=repository)


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    now = 0.0
    buckets = Throttles(FaultConfig(throttles=(Throttle("PutImage", 2, 3),)), clock=lambda: now)

    def passed(requests: int) -> int:
        return sum(not buckets.refuses("ecr", "PutImage", "") for _ in range(requests))

    assert passed(10) == 3
    now = 0.4
    assert passed(10) == 0
    now = 1.5
    assert passed(10) == 3
    now = 1000.0
    assert passed(10) == 3
    assert buckets.refused == [31]


def test_each_operation_and_account_and_service_has_a_bucket_of_its_own() -> None:
    buckets = Throttles(FaultConfig(throttles=(Throttle("*", 1, 1),)), clock=lambda: 0.0)
    callers = [(s, o, a) for s in ("ecr", "ecr-public") for o in ("PutImage", "ListImages") for a in ("1", "2")]
    assert [buckets.refuses(*caller) for caller in callers] == [False] * 8
    assert [buckets.refuses(*caller) for caller in callers] == [True] * 8


def test_a_throttle_comes_before_the_quotas() -> None:
    fault_config = FaultConfig(quotas="aws", throttles=(Throttle("PutImage", 1, 2),))
    buckets = Throttles(fault_config, clock=lambda: 0.0)
    private, public = AWS_QUOTAS
    passed = {
        (service, operation): sum(not buckets.refuses(service, operation, "") for _ in range(3000))
        for service in (private, public)
        for operation in ("PutImage", "InitiateLayerUpload", "UploadLayerPart", "ListImages")
    }
    assert list(passed.values()) == [2, 100, 500, 3000, 2, 10, 260, 3000]


@pytest.mark.parametrize(
    ("door", "operation"),
    [
        ("v2:POST-upload", "InitiateLayerUpload"),
        ("v2:PATCH-upload", "UploadLayerPart"),
        ("v2:PUT-upload", "CompleteLayerUpload"),
        ("v2:PUT-manifest", "PutImage"),
    ],
)
def test_a_push_through_v2_is_metered_as_the_operation_of_ecr(door: str, operation: str) -> None:
    """A push through `/v2/` takes from the quota of the operation that it stands for."""
    private = "AmazonEC2ContainerRegistry_V20150921"
    buckets = Throttles(FaultConfig(quotas="aws"), clock=lambda: 0.0)
    quota = AWS_QUOTAS[private][operation]
    assert sum(not buckets.refuses("v2:", door, "") for _ in range(quota - 1)) == quota - 1
    assert [buckets.refuses(private, operation, "") for _ in range(2)] == [False, True]
    assert buckets.refuses("v2:", door, "")
    assert not buckets.refuses("v2:", "v2:GET-blob", "")


def test_both_ends_have_read_the_same_quotas() -> None:
    for service, prefix in (("ecr", "AmazonEC2ContainerRegistry_V20150921"), ("ecr-public", "SpencerFrontendService")):
        ours = {name: rate for name, rate in AWS_QUOTAS[prefix].items() if name != "GetAuthorizationToken"}
        assert ours == QUOTAS[service]
