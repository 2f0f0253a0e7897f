"""Which tags a plan's rules take."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.errors import AsyncpushError, UsageError
from asyncpush.migrate.plan.tags import (
    Alternative,
    Patterns,
    SkippedTag,
    TagRules,
    check_glob,
    check_regex,
    choose,
    may_backtrack,
    select,
)
from asyncpush.migrate.plan.versions import VersionRange, version_order
from asyncpush.model import Digest
from asyncpush.reference import subject_of

DIGEST = "ab" * 32
TAGS = ("latest", "1.0.0", "1.1.0", "1.2.0-rc1", "1.2.0", "2.0.0", "2.0.0-alpine", f"sha256-{DIGEST}.sig")


def ranges(*texts: str) -> tuple[VersionRange, ...]:
    return tuple(map(VersionRange.parse, texts))


def taken(rules: TagRules, tags: tuple[str, ...] = TAGS) -> list[str]:
    return list(select(rules, tags).taken)


def test_without_rules_all_tags_are_taken_but_signatures() -> None:
    selection = select(TagRules(), TAGS)

    assert selection.taken == TAGS[:-1]
    assert selection.left_out == (SkippedTag(TAGS[-1], f"a signature or referrer of sha256:{DIGEST}"),)
    assert selection.missing == ()


def test_names_are_taken_as_they_are_and_told_if_they_are_missing() -> None:
    rules = TagRules(names=("2.0.0", "gone", TAGS[-1], "1.0.0"))
    selection = select(rules, TAGS)

    assert selection.taken == ("2.0.0", TAGS[-1], "1.0.0")
    assert selection.missing == ("gone",)
    assert {each.reason for each in selection.left_out} == {"not among the names"}
    assert not rules.needs_listing


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (Patterns(glob=("1.*", "lat?st")), ["latest", "1.0.0", "1.1.0", "1.2.0-rc1", "1.2.0"]),
        (Patterns(glob=("[!0-9]*",)), ["latest"]),
        (Patterns(regex=(r"\d+\.\d+\.0",)), ["1.0.0", "1.1.0", "1.2.0", "2.0.0"]),
        (Patterns(regex=("1",)), []),
        (Patterns(regex=("1|latest",)), ["latest"]),
        (Patterns(semver=ranges("<1.1", ">=2")), ["1.0.0", "2.0.0"]),
        (Patterns(semver=ranges(">=1.2.0-0")), ["1.2.0-rc1", "1.2.0", "2.0.0", "2.0.0-alpine"]),
        (Patterns(glob=("1.*",), regex=(".*0",), semver=ranges(">1.0")), ["1.1.0", "1.2.0"]),
    ],
)
def test_one_pattern_of_each_kind_must_match(patterns: Patterns, expected: list[str]) -> None:
    rules = TagRules(patterns=patterns)

    assert taken(rules) == expected
    assert rules.needs_listing


def test_a_pre_release_is_told_as_the_reason_that_no_range_has_a_tag() -> None:
    selection = select(TagRules(patterns=Patterns(semver=ranges(">=2"))), TAGS)

    assert SkippedTag("2.0.0-alpine", "matches no semver (a pre-release)") in selection.left_out
    assert SkippedTag("1.0.0", "matches no semver") in selection.left_out


def test_one_alternative_is_enough_beside_what_all_tags_must_match() -> None:
    numbers = Alternative(Patterns(semver=ranges(">=1.1")), exclude=Patterns(glob=("2*",)))
    words = Alternative(Patterns(glob=("lat*",), regex=(".*st",)), exclude_names=("lust",))
    tags = (*TAGS, "lat", "lust", "last")

    assert taken(TagRules(alternatives=(numbers, words)), tags) == ["latest", "1.1.0", "1.2.0"]
    narrowed = TagRules(names=("lat",), patterns=Patterns(glob=("1*",)), alternatives=(numbers, words), newest=1)
    assert taken(narrowed, tags) == ["lat", "1.2.0"]
    selection = select(TagRules(alternatives=(numbers, words)), ("lat", "", TAGS[-1]))
    assert [each.reason.split()[0] for each in selection.left_out] == ["matches", "has", "a"]
    assert TagRules(names=("x",), alternatives=(numbers,)).needs_listing


def test_rules_say_in_one_line_what_they_take() -> None:
    rules = TagRules(
        names=("a", "b"),
        patterns=Patterns(glob=("v*",), semver=ranges(">=1")),
        alternatives=(Alternative(Patterns(regex=("x",)), Patterns(glob=("y",))), Alternative(Patterns(glob=("z",)))),
        exclude=Patterns(regex=tuple("123456")),
        exclude_names=("n",),
        newest=3,
    )

    assert str(rules) == (
        "names: a, b; glob: v*; semver: >=1; any: (regex: x; exclude glob: y) or (glob: z); exclude names: n; "
        "exclude regex: 1, 2, 3, 4, 5, ...; newest: 3"
    )
    assert str(TagRules()) == "all tags"


def test_names_come_first_and_are_never_excluded() -> None:
    rules = TagRules(names=("latest",), patterns=Patterns(glob=("1.*",)), exclude=Patterns(glob=("*",)))

    assert taken(rules) == ["latest"]
    assert rules.needs_listing


@pytest.mark.parametrize(
    "rules",
    [
        TagRules(exclude=Patterns(glob=("*-*",)), exclude_names=("latest",)),
        TagRules(exclude=Patterns(regex=(".*-.*", "latest"))),
        TagRules(exclude=Patterns(glob=("latest",), semver=ranges(">0.0.0-0 <1.0.0-0", "=1.2.0-rc1", "=2.0.0-alpine"))),
    ],
)
def test_anything_that_matches_excludes(rules: TagRules) -> None:
    selection = select(rules, TAGS)

    assert selection.taken == ("1.0.0", "1.1.0", "1.2.0", "2.0.0")
    assert SkippedTag("latest", "excluded") in selection.left_out


def test_the_newest_are_the_last_by_version_in_the_order_of_the_list() -> None:
    rules = TagRules(exclude=Patterns(glob=("*-alpine",)), newest=2)
    selection = select(rules, ("2.0.0", "10.0.0", *TAGS))

    assert selection.taken == ("2.0.0", "10.0.0")
    assert SkippedTag("latest", "not among the newest 2") in selection.left_out
    assert taken(TagRules(newest=100)) == list(TAGS[:-1])


def test_names_are_not_counted_among_the_newest() -> None:
    rules = TagRules(names=("1.0.0",), patterns=Patterns(glob=("*.0",)), newest=1)

    assert taken(rules) == ["1.0.0", "2.0.0"]


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
def test_signatures_and_referrers_are_told_by_their_tags(suffix: str) -> None:
    assert subject_of(f"sha256-{DIGEST}{suffix}") == Digest(DIGEST)
    assert subject_of(f"sha256-{DIGEST}{suffix}.x") is None
    assert subject_of(f"sha256-{DIGEST[:-1]}{suffix}") is None
    assert taken(TagRules(patterns=Patterns(glob=("*",))), (f"sha256-{DIGEST}{suffix}",)) == []


def test_what_can_be_no_tag_is_left_out() -> None:
    selection = select(TagRules(), ("ok", "a" * 129, "-x", "a/b"))

    assert selection.taken == ("ok",)
    assert {each.reason for each in selection.left_out} == {"not a valid tag in ECR"}


def test_an_image_without_a_tag_is_taken_where_nothing_is_asked_of_tags() -> None:
    assert taken(TagRules(), ("", "1")) == ["", "1"]
    assert taken(TagRules(newest=1), ("", "1")) == ["1"]
    assert taken(TagRules(patterns=Patterns(glob=("*",))), ("", "1")) == ["1"]
    assert taken(TagRules(names=("1",)), ("", "1")) == ["1"]


@pytest.mark.parametrize("pattern", ["(", "[", "*", "(?P<a>x)(?P<a>y)", "a{99999999999}", "", "x" * 1001])
def test_what_is_no_regular_expression_is_a_value_error(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"not a regular expression|characters"):
        check_regex(pattern)


@pytest.mark.parametrize("pattern", ["", "x" * 1001])
def test_a_glob_has_a_length(pattern: str) -> None:
    with pytest.raises(ValueError, match="characters"):
        check_glob(pattern)


names = st.sampled_from([*TAGS, "1", "1.2", "v3.1", "v3.10", "v3.9", "nightly-9", "nightly-10", "dev"])
globs = st.text(st.sampled_from("*?1.0v-ad[]!"), min_size=1, max_size=5)


@given(
    st.lists(names, max_size=12),
    st.lists(globs, max_size=2),
    st.lists(globs, max_size=2),
    st.integers(1, 4) | st.none(),
)
def test_each_tag_is_taken_or_left_out_for_a_reason(
    tags: list[str], wanted: list[str], unwanted: list[str], newest: int | None
) -> None:
    rules = TagRules(patterns=Patterns(glob=tuple(wanted)), exclude=Patterns(glob=tuple(unwanted)), newest=newest)
    selection = select(rules, tags)

    def matches(patterns: list[str], tag: str) -> bool:
        return any(fnmatchcase(tag, pattern) for pattern in patterns)

    fitting = {
        tag
        for tag in tags
        if subject_of(tag) is None and (not wanted or matches(wanted, tag)) and not matches(unwanted, tag)
    }
    expected = sorted(fitting, key=version_order)[-newest if newest else None :]
    assert sorted(selection.taken, key=version_order) == expected
    assert {*selection.taken, *(each.tag for each in selection.left_out)} == set(tags)
    assert not {*selection.taken} & {each.tag for each in selection.left_out}
    assert all(re.match(r"matches no|excluded|not among|a signature", each.reason) for each in selection.left_out)


def test_thousands_of_patterns_are_compiled_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def counted(pattern: str, compile_: Callable[[str], re.Pattern[str]] = re.compile) -> re.Pattern[str]:
        compiled.append(pattern)
        return compile_(pattern)

    monkeypatch.setattr("asyncpush.migrate.plan.tags.re.compile", counted)
    unwanted = tuple(f"unwanted-{number}*" for number in range(1500))
    select(TagRules(exclude=Patterns(glob=unwanted)), ("1", "2", "3"))

    assert len([each for each in compiled if "unwanted" in each]) == 1500


async def test_a_regular_expression_that_never_ends_is_named_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncpush.migrate.plan.tags.MATCH_TIMEOUT", 1)
    rules = TagRules(patterns=Patterns(regex=("(a+)+b",)))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await anyio.sleep(0.01)
            turns += 1

    async with anyio.create_task_group() as tg:
        tg.start_soon(others)
        with (
            anyio.fail_after(60),
            pytest.raises(UsageError, match=r"than 1 seconds for the tags of quay\.io/team"),
        ):
            await choose(rules, ["a" * 128], "quay.io/team/app")
        tg.cancel_scope.cancel()
    assert turns


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/false", ""])
async def test_a_doubtful_expression_is_never_matched_where_nothing_could_end_it(
    monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    monkeypatch.setattr("asyncpush.migrate.plan.tags.sys.executable", python)
    rules = TagRules(patterns=Patterns(regex=("(a+)+b",)))

    with pytest.raises(AsyncpushError, match=r"can't be run to match the tags of quay\.io/team/app .*'\(a\+\)\+b'"):
        await choose(rules, ["ab"], "quay.io/team/app")


async def test_what_is_matched_elsewhere_is_matched_alike() -> None:
    tags = ["v1", "v1.2", "v1.2.3", "latest", "v1.2-rc", "w1"]
    for pattern in (r"v[0-9]+(\.[0-9]+)*", r"v1\.2.*", r"(?!w).+1(\.2)*", r"[(*+?]*v[0-9.]+"):
        rules = TagRules(patterns=Patterns(regex=(pattern,)), exclude=Patterns(regex=(r".*(-rc)+",)))

        assert await choose(rules, tags, "quay.io/team/app") == select(rules, tags)
    assert all(map(may_backtrack, ["(a|a)*b", r"(a*)\1b", "a*a*a*a*b"]))
    assert not may_backtrack(r"v[0-9]+\.[0-9]+\.[0-9]+")
    assert not may_backtrack(r"[(*+?]*v\)+")
