"""Versions in tags: their order, and ranges as Masterminds/semver documents them, which skopeo and regsync read by."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.migrate.plan.versions import MAX_RANGE, Version, VersionRange, version_order

#: semver.org 2.0.0, section 11, with what lies around it.
ASCENDING = [
    "0.0.1", "0.9.9", "1.0.0-1", "1.0.0-2", "1.0.0-10", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta",
    "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "v1.1", "1.2.0", "1.10", "2",
    "10.0.0", "20240101",
]  # fmt: skip

numbers = st.integers(0, 4)
versions = st.builds(Version, numbers, numbers, numbers)
identifiers = st.from_regex(r"[0-9A-Za-z-]{1,5}(\.[0-9A-Za-z-]{1,5}){0,2}", fullmatch=True)
tags = st.one_of(
    st.from_regex(r"v?[0-9]{1,3}(\.[0-9]{1,3}){0,4}([._-]?[a-z0-9._-]{0,6})?", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,12}", fullmatch=True),
)


def found(text: str) -> Version:
    version = Version.parse(text)
    assert version is not None, text
    return version


def test_versions_have_semvers_order() -> None:
    shuffled = sorted(ASCENDING, key=len)

    assert sorted(shuffled, key=version_order) == ASCENDING
    assert all(found(low) < found(high) for low, high in itertools.pairwise(ASCENDING))


def test_what_is_no_version_comes_first_in_natural_order() -> None:
    words = ["build-2", "build-10", "jammy", "latest"]

    assert sorted(["1.0", "latest", "build-10", "jammy", "build-2", "0.1"], key=version_order) == [*words, "0.1", "1.0"]


@pytest.mark.parametrize(
    "text", ["", "v", "1.", "1.2.3.", "1.2_", "1.2.3-", "1.2-a..b", "x", "1.x", " 1", "1\n", "vv1", "\u0661"]
)
def test_what_is_no_version(text: str) -> None:
    assert Version.parse(text) is None


def test_build_metadata_counts_for_nothing() -> None:
    assert found("1.2.3+a") == found("v1.2.3+b.7") == found("1.2.3_a_b.7") == found("1.2.3")
    assert found("1.2.3-rc.1_b") == found("1.2.3-rc.1")


def test_more_numbers_than_three_lie_between_their_neighbours() -> None:
    assert found("1.2.3") == found("1.2.3.0.0") < found("1.2.3.0.1") < found("1.2.3.4") < found("1.2.3.10")
    assert found("1.2.3.10") < found("1.2.4-a") < found("1.2.4")
    assert VersionRange.parse(">=1.2.3 <1.3").matches(found("1.2.3.4"))
    assert not VersionRange.parse("1.2.3 || <=1.2.3").matches(found("1.2.3.4"))


@pytest.mark.parametrize(
    "ascending",
    [
        # As Helm writes build metadata; of equal precedence the build decides.
        "0.1.0 0.2.0 0.3.0 2.0.0 2.0.0_b1 2.0.0_b7 v2.0.0_b10 2.0.1_b1 2.1.0_b7",
        "latest 1 v1.2 1.2.3-alpine 1.2.3 1.2.3.4 1.2.3.4_5 1.2.4",
        "stable-10 0.9 2024-01-15 2024-02-01 2024.01.15 2024.01.15.2 20240115",
        "9f86d08 abc 3.12 3.13.0-alpha 3.13.0a1 3.13.0b2 3.13.0rc1 3.13.0 3.13.0.Final 3.13.0p1 3.13.1",
    ],
)
def test_what_is_nearly_a_version_lies_among_the_versions(ascending: str) -> None:
    words = ascending.split()

    assert sorted(words, key=version_order) == words
    assert all(version_order(low) < version_order(high) for low, high in itertools.combinations(words, 2))


@given(st.lists(tags, max_size=20))
def test_the_order_is_total_and_does_not_depend_on_where_one_began(texts: list[str]) -> None:
    ordered = sorted(set(texts), key=version_order)

    assert ordered == sorted(sorted(set(texts), reverse=True), key=version_order)
    assert len({version_order(text) for text in ordered}) == len(ordered)
    assert all(found(low) <= found(high) for low, high in itertools.pairwise(filter(Version.parse, ordered)))


@given(tags, tags, tags)
def test_two_tags_are_in_one_order_only_and_three_in_a_row(one: str, two: str, three: str) -> None:
    low, mid, high = sorted((one, two, three), key=version_order)

    assert (version_order(one) < version_order(two)) + (version_order(two) < version_order(one)) == (one != two)
    assert version_order(low) <= version_order(mid) <= version_order(high)
    assert version_order(low) <= version_order(high)


@given(versions, identifiers, identifiers)
def test_a_build_is_above_its_release_and_below_the_next(version: Version, one: str, two: str) -> None:
    release = f"{version.major}.{version.minor}.{version.patch}"
    following = f"{version.major}.{version.minor}.{version.patch + 1}-0"

    assert version_order(release) < version_order(f"{release}_{one}") < version_order(following)
    assert (version_order(f"{release}_{one}") < version_order(f"{release}_{two}")) != (
        version_order(f"{release}_{two}") <= version_order(f"{release}_{one}")
    )


@given(
    versions, st.lists(st.sampled_from(["<2", ">=1.1", "!=1.2.1", "~3", "^0.2", ">1.2.3-a", "<=1.0.0-b"]), max_size=3)
)
def test_a_range_that_is_called_empty_has_no_version(version: Version, words: list[str]) -> None:
    parsed = VersionRange.parse(" ".join(words) or "*")

    assert not (parsed.is_empty and parsed.matches(version))


@given(versions, identifiers)
def test_a_prerelease_lies_between_its_release_and_all_lower_ones(version: Version, words: str) -> None:
    pre = found(f"{version.major}.{version.minor}.{version.patch}-{words}")
    lower = Version(version.major, version.minor, version.patch - 1)

    assert lower < pre < version
    assert pre.is_prerelease


#: What the ranges of Masterminds' documentation hold, and what not.
RANGES = {
    ">= 3.12.0": ("3.12.0 3.12.1 4 v3.13", "3.11.9 3.12.0-rc1 3.13.0-rc1 3.11"),
    ">=1.2 <3": ("1.2 2.9.9", "1.1.9 3 3.0.1 2.0.0-a"),
    ">=1.2, <3": ("1.2 2.9.9", "1.1.9 3"),
    ">=1.2,<3,!=2.0.0": ("1.2 2.0.1", "2 2.0.0"),
    "<1 || >=2.1 <2.3 || 4.x": ("0.9 2.1 2.2.9 4.9.9", "1 2.3 3 5"),
    "1.2": ("1.2 1.2.9", "1.3 1.1.9 2.2"),
    "=1.2": ("1.2.7", "1.3"),
    "1.2.3": ("1.2.3 v1.2.3", "1.2.4 1.2.3-a"),
    "1.x": ("1 1.9", "2 0.9"),
    "1.2.X": ("1.2.0", "1.3"),
    "*": ("0.0.1 7", "1.0.0-a"),
    "x.x.x": ("0.0.1 7", "1.0.0-a"),
    ">=*": ("0", "1-a"),
    ">*": ("", "0 1"),
    "<x": ("", "0 1"),
    "!=*": ("", "0 1"),
    "!=1.2.3": ("1.2.4 1", "1.2.3"),
    "!=1.2": ("1.3 2", "1.2 1.2.9"),
    "!=1.x": ("2", "1 1.9"),
    ">11": ("12", "11 11.1 10"),
    ">11.1": ("11.2 12", "11.1 11.1.1"),
    ">11.1.1": ("11.1.2", "11.1.1"),
    "<=11": ("11 11.9 10", "12"),
    "<=11.1": ("11.1.9 11", "11.2"),
    "<11.x": ("10.9", "11"),
    "~1.2.3": ("1.2.3 1.2.9", "1.3 1.2.2"),
    "~1.2": ("1.2 1.2.9", "1.3"),
    "~1": ("1 1.9", "2"),
    "~>2.3": ("2.3.4", "2.4"),
    "^1.2.3": ("1.2.3 1.9", "2 1.2.2"),
    "^1.2.x": ("1.2 1.9", "2 1.1"),
    "^2.3": ("2.3 2.9", "3"),
    "^2.x": ("2 2.9", "3"),
    "^0.2.3": ("0.2.3 0.2.9", "0.3 0.2.2 1"),
    "^0.2": ("0.2 0.2.9", "0.3"),
    "^0.0.3": ("0.0.3", "0.0.4 0.1"),
    "^0.0": ("0.0 0.0.9", "0.1"),
    "^0": ("0 0.9", "1"),
    "1.2 - 1.4.5": ("1.2 1.4.5", "1.4.6 1.1"),
    "1.2 - 1.4": ("1.2 1.4.9", "1.5"),
    "2.3.4 - 4.5.6 || 7": ("2.3.4 4.5.6 7.1", "5 2.3.3"),
    ">=1.2.3-beta.1 <2": ("1.2.3-beta.2 1.2.3 1.9.0-a 2.0.0-a", "1.2.3-beta.0 1.2.3-alpha 2"),
    ">=1.0.0-0": ("1.0.0-0 1.0.0-a 1", "0.9"),
    "~1.2.3-rc.1": ("1.2.3-rc.1 1.2.4", "1.2.3-a 1.3"),
    "1 || >=2.0.0-0": ("1 2.0.0-a", "1.0.0-a"),
    "=>1.2": ("1.2 9", "1.1"),
    "=<1.2": ("1.2.9 1", "1.3"),
    "v1.2.3": ("1.2.3", "1.2.4"),
    ">=v1.2": ("v1.2", "v1.1"),
}


@pytest.mark.parametrize("text", RANGES)
def test_a_range_holds_what_its_documentation_says(text: str) -> None:
    inside, outside = (part.split() for part in RANGES[text])
    parsed = VersionRange.parse(text)

    assert [tag for tag in inside if not parsed.matches(found(tag))] == []
    assert [tag for tag in outside if parsed.matches(found(tag))] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "||",
        "1 ||",
        ">",
        ">>1",
        "1.2.3.4",
        "latest",
        ">=1.2<3",
        "1 - ",
        " - 2",
        "1 - 2 - 3",
        "1;2",
        ">=a",
        "1" * 501,
    ],
)
def test_what_is_no_range_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|alternative"):
        VersionRange.parse(text)


@given(st.text(st.sampled_from("0123456789.xX*vV<>=!~^|, -+ab\n\0"), max_size=30) | st.text(max_size=MAX_RANGE + 2))
def test_any_text_is_a_range_or_a_value_error(text: str) -> None:
    try:
        parsed = VersionRange.parse(text)
    except ValueError:
        return
    assert isinstance(parsed.matches(Version(1, 2, 3)), bool)


@given(versions, numbers, numbers, numbers)
def test_operators_are_intervals(version: Version, major: int, minor: int, patch: int) -> None:
    """Each operator, against its interval written out by hand."""

    def holds(text: str) -> bool:
        return VersionRange.parse(text).matches(version)

    at, full = Version(major, minor, patch), f"{major}.{minor}.{patch}"
    if major:
        above = Version(major + 1)
    elif minor:
        above = Version(0, minor + 1)
    else:
        above = Version(0, 0, patch + 1)

    assert holds(full) == holds(f"={full}") == (version == at) != holds(f"!={full}")
    assert holds(f">{full}") == (version > at) != holds(f"<={full}")
    assert holds(f">={full}") == (version >= at) != holds(f"<{full}")
    assert holds(f"~{full}") == (at <= version < Version(major, minor + 1))
    assert holds(f"^{full}") == (at <= version < above)
    assert holds(f"{major}.{minor}") == (Version(major, minor) <= version < Version(major, minor + 1))
    assert holds(f"{major}.x") == (Version(major) <= version < Version(major + 1)) == holds(f"~{major}")
    assert holds(f">{major}.{minor}") == (version >= Version(major, minor + 1)) != holds(f"<={major}.{minor}")
    assert holds(f"{full} - 3.3") == (at <= version < Version(3, 4))


@given(versions, st.lists(st.sampled_from(["<2", ">=1.1", "!=1.2.1", "~3", "^0.2", "4.x"]), min_size=1, max_size=4))
def test_or_is_any_and_a_space_or_comma_is_all(version: Version, words: list[str]) -> None:
    each = [VersionRange.parse(word).matches(version) for word in words]

    assert VersionRange.parse(" || ".join(words)).matches(version) == any(each)
    assert VersionRange.parse(" ".join(words)).matches(version) == all(each)
    assert VersionRange.parse(", ".join(words)).matches(version) == all(each)
