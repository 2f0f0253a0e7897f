"""The JSON schema of a plan's document: for editors, and for those who make plans by program."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec

from asyncpush.migrate.plan.document import PlanDocument

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_EXAMPLE = {
    "version": 1,
    "registries": {"docker.io": {"credentials": {"username": "${HUB_USER}", "password": "${HUB_TOKEN}"}}},
    "targets": {"eu": {"registry": "123456789012.dkr.ecr.eu-west-1.amazonaws.com", "prefix": "mirror"}},
    "defaults": {"repository": {"create": True, "mutability": "IMMUTABLE", "exclusions": ["latest"]}},
    "images": [
        {"from": "docker.io/library/nginx", "tags": ["1.25", "1.26"]},
        {"from": "quay.io/prometheus/prometheus", "tags": {"semver": ">=2.40 <3", "newest": 5}},
        {"from": "ghcr.io/team/app:1.4", "to": "team/app:1.4", "platforms": ["linux/amd64"]},
    ],
}


def plan_schema() -> dict[str, Any]:
    """The schema, in the 2020-12 dialect; descriptions are those of the document's classes.

    Numbers and truth values may be written as ``${NAME}`` too, which it does not say.
    """
    (reference,), components = msgspec.json.schema_components([PlanDocument], ref_template="#/$defs/{name}")
    for component in components.values():
        _describe(component)
    title = reference["$ref"].rpartition("/")[2]
    whole = components.pop(title)
    return {
        "$schema": _DIALECT,
        **whole,
        "title": "A plan of asyncpush",
        "examples": [_EXAMPLE],
        "$defs": dict(sorted(components.items())),
    }


def _describe(component: dict[str, Any]) -> None:
    """Give the members their part of the class's docstring."""
    text = inspect.cleandoc(component.get("description", ""))
    summary, _, attributes = text.partition("\n\nAttributes:\n")
    component["description"] = " ".join(summary.split())
    for match in re.finditer(r"^    (\w+): (.+(?:\n {8,}.+)*)", attributes, re.MULTILINE):
        member = component["properties"].get(match[1])
        if member is not None:
            member["description"] = " ".join(match[2].split())
    component["title"] = component["title"].removesuffix("Document")
    for member in component["properties"].values():
        # msgspec notes that a member without a default may be left out; a schema says so by not requiring it.
        member.pop("default", None)
