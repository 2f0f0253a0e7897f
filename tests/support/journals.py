"""Values for the tests of the journal: repositories, layers, manifests; and what its file says of layers."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from asyncpush.journal import HeldLayer
from asyncpush.manifest import OCI_CONFIG, OCI_MANIFEST, Manifest, parse_manifest
from asyncpush.model import Descriptor, Digest, Upload

HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
APP, OTHER = f"{HOST}/team/app", f"{HOST}/team/other"
ELSEWHERE = f"{HOST}.cn/team/app"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
UPLOAD = Upload("upload-1", 10_485_760, 4200)


def digest(word: str) -> Digest:
    """A digest that goes by a word."""
    return Digest.of(word.encode())


def layer(word: str, size: int = 7) -> Descriptor:
    """A layer that goes by a word."""
    return Descriptor(LAYER, digest(word), size)


def manifest(config: str, *layers: str, foreign: str | None = None) -> Manifest:
    """A manifest of these blobs."""
    entries = [{"mediaType": LAYER, "digest": str(digest(word)), "size": 7} for word in layers]
    if foreign:
        entries.append({"mediaType": FOREIGN, "digest": str(digest(foreign)), "size": 7, "urls": ["https://x.test/a"]})
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(digest(config)), "size": 7},
        "layers": entries,
    }
    return parse_manifest(json.dumps(document).encode())


def held_layers(path: Path, registry: str = HOST) -> list[HeldLayer]:
    """All layers of all repositories of a registry, read from a journal's file."""
    query = (
        "SELECT address, digest, referenced FROM layer JOIN repository ON key = repository WHERE address GLOB ?"
        " ORDER BY address, digest"
    )
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(query, (f"{registry}/*",)).fetchall()
    return [HeldLayer(address, Digest(column.hex()), bool(referenced)) for address, column, referenced in rows]
