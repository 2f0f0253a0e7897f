"""AWS's rules for resource tags: how many, how long, which keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncpush.emulator.api.requests import ResourceTag
from asyncpush.emulator.errors import AwsError
from asyncpush.emulator.store.records import ResourceTags

#: ECR's quota of resource tags.
_MAX_TAGS = 50

_MAX_KEY, _MAX_VALUE = 128, 256


def tagged(held: Mapping[str, str], added: Sequence[ResourceTag]) -> ResourceTags:
    """The tags that a resource has once *added* are put on it.

    Raises:
        AwsError: InvalidTagParameterException, TooManyTagsException.
    """
    for tag in added:
        if not 0 < len(tag.key) <= _MAX_KEY or len(tag.value) > _MAX_VALUE:
            raise AwsError(
                "InvalidTagParameterException",
                f"A tag's key has 1 to {_MAX_KEY} characters and its value up to {_MAX_VALUE}: '{tag.key[:_MAX_KEY]}'",
            )
        if tag.key.lower().startswith("aws:"):
            raise AwsError("InvalidTagParameterException", f"Tag keys can not begin with aws: '{tag.key}'")
    merged = {**held, **{tag.key: tag.value for tag in added}}
    if max(len(merged), len(added)) > _MAX_TAGS:
        raise AwsError("TooManyTagsException", f"A repository can have up to {_MAX_TAGS} tags")
    return merged


def listed(tags: Mapping[str, str]) -> list[ResourceTag]:
    """Tags as answers have them."""
    return [ResourceTag(key, value) for key, value in tags.items()]
