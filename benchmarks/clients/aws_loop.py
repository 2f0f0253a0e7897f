"""Contender: the layer operations as commands of the aws CLI, one after the other, as a shell script calls them.

python aws_loop.py LAYOUT TAG REPOSITORY
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Push one image of an OCI layout."""
    layout, tag, repository = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    names = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry for entry in entries}
    path = _blob(layout, names[tag]["digest"])
    manifest = json.loads(path.read_bytes())
    for descriptor in (manifest["config"], *manifest["layers"]):
        _push(_blob(layout, descriptor["digest"]), repository)
    image = ("--image-manifest", f"file://{path}", "--image-manifest-media-type", names[tag]["mediaType"])
    _aws("put-image", "--repository-name", repository, "--image-tag", tag, *image)


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.partition(":")[2]


def _push(blob: Path, repository: str) -> None:
    upload = json.loads(_aws("initiate-layer-upload", "--repository-name", repository))
    common = ("--repository-name", repository, "--upload-id", upload["uploadId"])
    sha256, first = hashlib.sha256(), 0
    with blob.open("rb") as file, tempfile.NamedTemporaryFile() as part:
        while data := file.read(upload["partSize"]):
            sha256.update(data)
            part.seek(0)
            part.truncate()
            part.write(data)
            part.flush()
            span = ("--part-first-byte", str(first), "--part-last-byte", str(first + len(data) - 1))
            _aws("upload-layer-part", *common, *span, "--layer-part-blob", f"fileb://{part.name}")
            first += len(data)
    _aws("complete-layer-upload", *common, "--layer-digests", f"sha256:{sha256.hexdigest()}")


def _aws(*words: str) -> bytes:
    return subprocess.run(["aws", "ecr", *words], check=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    main()
