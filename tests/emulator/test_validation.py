"""Every request is judged by the service model that botocore ships: each rule of it, and no other; never a defect."""

from __future__ import annotations

import base64
import json
import logging
import random
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.emulator import Emulator
from asyncpush.emulator.api import requests
from asyncpush.emulator.api.validation import load_input_rules, load_model
from asyncpush.emulator.errors import AwsError

SERVICES = ("ecr", "ecr-public")
TARGETS = {"ecr": "AmazonEC2ContainerRegistry_V20150921", "ecr-public": "SpencerFrontendService"}
JUDGES = {service: botocore.session.Session().get_service_model(service) for service in SERVICES}
OPERATIONS = [(service, operation) for service in SERVICES for operation in sorted(load_model(service)["operations"])]

#: What satisfies each pattern; where a longer one is wanted, more of its last letter does, too.
MATCHING = {
    "RegistryId": "123456789012",
    "RegistryIdOrAlias": "alias",
    "UploadId": "0cb5cb63-f0ad-4ac5-aadf-ff3a37e1dd4e",
    "LayerDigest": "sha256:a",
    "KmsKeyForRepositoryCreationTemplate": "arn:aws:kms:eu-west-1:123456789012:key/a",
    "CredentialArn": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:ecr-pullthroughcache/a",
}
#: Bounds that nothing which matches the pattern can reach.
UNREACHED = {("CredentialArn", "min")}


def text(name: str, length: int | None = None) -> str:
    base = MATCHING.get(name, "a" * 4)
    if length is None:
        return base
    return base + "a" * (length - len(base)) if length >= len(base) else "a" * length


#: What has another type.
WRONG: dict[str, list[Any]] = {
    "structure": ["x", 1.5, True, ["x"]],
    "list": ["x", 1.5, True, {"x": 1}],
    "string": [1.5, True, ["x"], {"x": 1}],
    "blob": [1.5, True, ["x"], {"x": 1}],
    "boolean": [1, "true", ["x"], {"x": 1}],
    "integer": [1.5, "1", True, ["x"], {"x": 1}],
    "long": [1.5, "1", True, ["x"], {"x": 1}],
}


class Cases:
    """Values of a service's shapes: good ones, and ones that break one rule at a path."""

    def __init__(self, service: str) -> None:
        self.shapes = load_model(service)["shapes"]

    def good(self, name: str) -> Any:
        shape = self.shapes[name]
        match shape["type"]:
            case "structure":
                return {member: self.good(entry["shape"]) for member, entry in shape["members"].items()}
            case "list":
                return [self.good(shape["member"]["shape"])] * max(shape.get("min", 0), 1)
            case "string":
                return shape["enum"][0] if "enum" in shape else text(name, max(shape.get("min", 0), len(text(name))))
            case "blob":
                return base64.b64encode(bytes(3)).decode()
            case "boolean":
                return True
        return max(shape.get("min", 0), 1)

    def around(self, name: str) -> Iterator[tuple[Any, str | None]]:
        """Values on both sides of each of a shape's rules, and of those within it; where the bad ones are bad."""
        shape = self.shapes[name]
        yield from ((value, "") for value in WRONG[shape["type"]])
        match shape["type"]:
            case "structure":
                yield from self._around_structure(name)
            case "list":
                yield from self._around_list(name)
            case "string":
                yield from self._around_string(name)
            case "blob":
                yield from self._around_blob(name)
            case "boolean":
                yield from ((True, None), (False, None))
            case kind:
                least, most = {"integer": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}[kind]
                least, most = shape.get("min", least), shape.get("max", most)
                yield from ((least, None), (most, None), (least - 1, ""), (most + 1, ""))

    def _around_structure(self, name: str) -> Iterator[tuple[Any, str | None]]:
        shape, good = self.shapes[name], self.good(name)
        required = shape.get("required", [])
        yield {member: good[member] for member in required}, None
        yield {**good, "aMemberOfTomorrow": [{"x": None}]}, None
        for member, entry in shape["members"].items():
            absent = {key: value for key, value in good.items() if key != member}
            yield absent, f".{member}" if member in required else None
            yield {**good, member: None}, f".{member}" if member in required else None
            for value, place in self.around(entry["shape"]):
                yield {**good, member: value}, None if place is None else f".{member}{place}"

    def _around_list(self, name: str) -> Iterator[tuple[Any, str | None]]:
        shape = self.shapes[name]
        member = shape["member"]["shape"]
        good = self.good(member)
        for bound, over in (("min", -1), ("max", 1)):
            if shape.get(bound):
                yield [good] * shape[bound], None
                yield [good] * (shape[bound] + over), ""
        yield [None] + [good] * (shape.get("min", 1) - 1), "[0]"
        for value, place in self.around(member):
            yield [value] * max(shape.get("min", 1), 1), None if place is None else f"[0]{place}"

    def _around_string(self, name: str) -> Iterator[tuple[Any, str | None]]:
        shape = self.shapes[name]
        if "enum" in shape:
            yield from ((value, None) for value in shape["enum"])
            yield from ((value, "") for value in ("", shape["enum"][0] + "S", shape["enum"][0].swapcase()))
            return
        for bound, over in (("min", -1), ("max", 1)):
            if shape.get(bound):
                if (name, bound) not in UNREACHED:
                    yield text(name, shape[bound]), None
                yield text(name, shape[bound] + over), ""
        if "pattern" in shape:
            yield from ((text(name) + end, "") for end in ("\n", " ", "é"))

    def _around_blob(self, name: str) -> Iterator[tuple[Any, str | None]]:
        most = self.shapes[name]["max"]
        yield from ((bytes(most), None), (bytes(most + 1), ""), ("AAA", ""), ("A A=", ""), ("é", ""), ("", None))


def refusal(service: str, operation: str, document: Any) -> str | None:
    """The message of what the rules say, None if nothing."""
    try:
        load_input_rules(service).check(operation, document)
    except AwsError as error:
        return error.message if error.code == "InvalidParameterException" else str(error)
    return None


@pytest.mark.parametrize(("service", "operation"), OPERATIONS)
def test_each_rule_of_the_model_holds_on_both_sides_of_its_bound(service: str, operation: str) -> None:
    shape = load_model(service)["operations"][operation].get("input")
    if shape is None:
        assert refusal(service, operation, {"anything": 1}) is None
        return
    for document, broken in Cases(service).around(shape["shape"]):
        if not isinstance(document, dict):
            continue
        message = refusal(service, operation, document)
        if broken is None:
            assert message is None
        else:
            place = re.escape(broken.removeprefix("."))
            assert message is not None, f"{broken} of {operation} passed"
            assert re.match(rf"Invalid parameter at '{place}' failed to satisfy constraint: 'must ", message)


@pytest.mark.parametrize(("service", "operation"), OPERATIONS)
def test_what_the_rules_let_pass_has_the_types_that_the_emulator_reads(service: str, operation: str) -> None:
    kind = getattr(requests, operation, None) or getattr(requests, operation, None)
    if kind is None:
        return
    shape = load_model(service)["operations"][operation].get("input", {}).get("shape")
    for document, broken in Cases(service).around(shape) if shape else [({}, None)]:
        if broken is None:
            body = json.dumps(document, default=lambda _: "").encode()
            assert requests.decode(body, kind, partial(load_input_rules(service).check, operation)) is not None


def members(operation: str) -> set[str]:
    """The members that either service's input of an operation has."""
    models = [load_model(service) for service in SERVICES]
    shapes = [(model, model["operations"].get(operation, {}).get("input")) for model in models]
    return {name for model, shape in shapes if shape for name in model["shapes"][shape["shape"]]["members"]}


@pytest.mark.parametrize("operation", sorted({operation for _, operation in OPERATIONS}))
def test_the_emulator_reads_no_member_that_ecr_has_not(operation: str) -> None:
    kind = getattr(requests, operation, None) or getattr(requests, operation, None)
    if kind is not None:
        assert set(kind.__struct_encode_fields__) <= members(operation) | {"registryId"}


def test_a_value_that_is_newer_than_the_emulator_is_no_defect() -> None:
    body = b'{"repositoryName": "app", "imageTagMutability": "OF_TOMORROW"}'
    with pytest.raises(AwsError, match="This emulator does not know that: Invalid enum value 'OF_TOMORROW'"):
        requests.decode(body, requests.CreateRepository, lambda _: None)


@given(st.data())
def test_botocores_own_validator_has_the_same_opinion_where_it_has_one(data: st.DataObject) -> None:
    service = data.draw(st.sampled_from(SERVICES))
    judge = JUDGES[service]
    operation = data.draw(st.sampled_from(judge.operation_names))
    shape = judge.operation_model(operation).input_shape
    if shape is None:
        return
    document = data.draw(anything_like(shape).filter(lambda value: isinstance(value, dict)))

    theirs = ParamValidator().validate(document, shape)
    message = refusal(service, operation, document)

    if theirs.has_errors():
        assert message is not None, theirs.generate_report()
    elif message is not None:
        assert re.search("less than or equal|regular expression|enum value set|base64", message), document


def anything_like(shape: Any) -> st.SearchStrategy[Any]:
    """Values of a shape, most of them nearly right; no unknown members, which AWS takes and botocore not."""
    match shape.type_name:
        case "structure":
            members = {name: anything_like(member) for name, member in shape.members.items()}
            required = {name: members[name] for name in shape.required_members}
            optional = {name: members[name] for name in members if name not in required}
            right: Any = st.fixed_dictionaries(required, optional=optional)
            right |= st.fixed_dictionaries({}, optional=members)
        case "list":
            right = st.lists(anything_like(shape.member), max_size=3)
        case "string":
            right = st.sampled_from(shape.enum or [MATCHING.get(shape.name, "abcd"), "", "a"])
        case "blob":
            right = st.binary(max_size=3)
        case "boolean":
            right = st.booleans()
        case _:
            right = st.integers(-2, 1002)
    # botocore takes bools for integers and text for blobs.
    wrong = [value for value in WRONG[shape.type_name] if value is not True and not isinstance(value, str)]
    return right | right | right | right | st.sampled_from(wrong)


@pytest.mark.parametrize(
    ("service", "name", "fits"),
    [
        ("ecr", "a__b", True),
        ("ecr", "a--b/c---d", True),
        ("ecr", "a.b_c-d/e", True),
        ("ecr", "a___b", False),
        ("ecr", "a..b", False),
        ("ecr", "a-_b", False),
        ("ecr", "a/", False),
        ("ecr-public", "a.b/c", True),
        ("ecr-public", "a__b", False),
        ("ecr-public", "a--b", False),
    ],
)
def test_names_of_repositories_have_the_form_of_todays_ecr(service: str, name: str, fits: bool) -> None:
    assert (refusal(service, "InitiateLayerUpload", {"repositoryName": name}) is None) == fits


def test_values_that_the_pinned_botocore_lacks_are_taken_beside_its_own() -> None:
    for value in ("REPLICATION", "PULL_THROUGH_CACHE", "CREATE_ON_PUSH"):
        assert refusal("ecr", "CreateRepositoryCreationTemplate", {"prefix": "ROOT", "appliedFor": [value]}) is None
    refused = refusal("ecr", "CreateRepositoryCreationTemplate", {"prefix": "ROOT", "appliedFor": ["X"]})
    assert "'appliedFor[0]'" in str(refused)


def test_operations_that_the_pinned_botocore_lacks_are_known() -> None:
    asked = {"repositoryName": "app", "subjectId": {"imageDigest": "sha256:a"}, "maxResults": 50}

    assert refusal("ecr", "ListImageReferrers", asked) is None
    assert "'maxResults'" in str(refusal("ecr", "ListImageReferrers", {**asked, "maxResults": 51}))
    assert "'subjectId.imageDigest'" in str(refusal("ecr", "ListImageReferrers", {**asked, "subjectId": {}}))
    moved = {"repositoryName": "app", "imageId": {"imageTag": "1"}, "targetStorageClass": "ARCHIVE"}
    assert refusal("ecr", "UpdateImageStorageClass", moved) is None
    assert "'targetStorageClass'" in str(refusal("ecr", "UpdateImageStorageClass", {**moved, "targetStorageClass": ""}))


@given(st.text("ab9*._-/", max_size=7))
def test_the_pattern_that_is_rewritten_accepts_what_the_models_own_accepts(value: str) -> None:
    own = re.compile(JUDGES["ecr"].shape_for("ScanningRepositoryFilterValue").metadata["pattern"])
    filters = [{"filter": value, "filterType": "WILDCARD"}]
    rules = [{"scanFrequency": "MANUAL", "repositoryFilters": filters}]

    message = refusal("ecr", "PutRegistryScanningConfiguration", {"rules": rules})

    assert (message is None) == (own.fullmatch(value) is not None)


def test_no_pattern_of_the_models_takes_long_to_refuse() -> None:
    for service in SERVICES:
        for name, shape in load_model(service)["shapes"].items():
            if "pattern" in shape:
                for hard in ("a", "a.", "a/", "a-", "*", "0", "arn:aws:a", "a:", "_a"):
                    most = shape.get("max", 4000)
                    re.fullmatch(shape["pattern"], text(name)[:-1] + (hard * most)[: most - 1] + "!", re.ASCII)


RUBBISH = [None, True, -1, 0, 2**40, 2**80, 1.5, "", "x", "é\0", "sha256:" + "0" * 64, [], [None], {}, {"a": {}}, "{}"]


def spoiled(generator: random.Random, value: Any) -> Any:
    """*value* with some of it replaced, removed, repeated or added to."""
    if generator.random() < 0.07:
        return generator.choice(RUBBISH)
    if isinstance(value, dict):
        kept = {key: spoiled(generator, entry) for key, entry in value.items() if generator.random() < 0.85}
        return {**kept, "unknown": generator.choice(RUBBISH)} if generator.random() < 0.1 else kept
    if isinstance(value, list):
        return [spoiled(generator, entry) for entry in value] * generator.choice([1, 1, 1, 0, 2])
    return value


@pytest.mark.parametrize("seed", range(4))
async def test_no_request_meets_a_defect(tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    caplog.set_level(logging.WARNING)
    generator = random.Random(seed)
    cases = {service: Cases(service) for service in SERVICES}
    statuses: set[int] = set()
    async with (
        Emulator(tmp_path, fsync=False, verify_signatures=False) as emulator,
        aiohttp.ClientSession(emulator.endpoint_url) as http,
    ):
        for _ in range(200):
            service, operation = generator.choice(OPERATIONS)
            shape = load_model(service)["operations"][operation].get("input")
            good = cases[service].good(shape["shape"]) if shape else {}
            for name in ("nextToken", "registryId", "imageIds", "repositoryNames"):
                if generator.random() < 0.7:
                    good.pop(name, None)
            body = json.dumps(spoiled(generator, deepcopy(good))).encode()
            if generator.random() < 0.05:
                body = generator.randbytes(generator.randrange(100))
            headers = {"X-Amz-Target": f"{TARGETS[service]}.{operation}"}
            async with http.post("/", data=body, headers=headers) as response:
                document = json.loads(await response.read())
            statuses.add(response.status)
            assert response.status in (200, 400, 501), (operation, body, document)
            assert response.status == 200 or document["__type"].endswith("Exception")
    assert statuses == {200, 400, 501}
    assert [record.getMessage() for record in caplog.records] == []
