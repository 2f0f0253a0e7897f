"""The path of a byte from ``asyncpush push`` to the wire: few files, each imports the next one, and none turns back."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import asyncpush

PACKAGE = Path(asyncpush.__file__).parent

#: Down to the seam of a repository, and from there to the wire; README draws it.
TO_THE_SEAM = ["cli/push", "api", "engine/image", "engine/layer", "engine/upload", "engine/ordering", "protocols"]
TO_THE_WIRE = ["connection", "ecr/registry", "ecr/repository", "ecr/client", "ecr/part_body"]


def imports(module: str) -> set[str]:
    """The modules of asyncpush that *module* imports."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asyncpush"):
            path = "/".join(node.module.split(".")[1:])
            for name in node.names:
                inner = f"{path}/{name.name}".lstrip("/")
                found.add(inner if (PACKAGE / f"{inner}.py").exists() else path)
    return found


def test_each_file_on_the_path_of_a_byte_imports_the_next() -> None:
    for path in (TO_THE_SEAM, TO_THE_WIRE):
        for file, following in pairwise(path):
            assert following in imports(file), f"{file} does not import {following}"


def test_the_path_of_a_byte_never_turns_back() -> None:
    path = TO_THE_SEAM + TO_THE_WIRE
    assert len(path) <= 12
    for place, file in enumerate(TO_THE_SEAM):
        assert imports(file).isdisjoint(TO_THE_SEAM[:place]), file
    for place, file in enumerate(TO_THE_WIRE):
        assert imports(file).isdisjoint(TO_THE_WIRE[:place]), file
