"""The documents of a corpus, byte for byte: manifests, indexes and configs, and what the corpus knows of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from corpus import Manifest
from v2 import INDEX, MANIFEST, digest_of

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_EMPTY = "application/vnd.oci.empty.v1+json"
_SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "application/vnd.dev.cosign.artifact.sig.v1+json"
_SBOM = "application/spdx+json"

Json = dict[str, object]


def config(layers: Sequence[str], name: str, architecture: str) -> bytes:
    """The config of an image whose uncompressed layers have these digests."""
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Labels": {"org.opencontainers.image.title": name}},
        "rootfs": {"type": "layers", "diff_ids": list(layers)},
    }
    return json.dumps(document).encode()


def image(config_raw: bytes, layers: Sequence[tuple[str, int]]) -> tuple[bytes, Manifest]:
    """An image manifest's bytes, and what the corpus knows of it; *layers* are digests and sizes."""
    of_config = {"mediaType": _CONFIG, "digest": digest_of(config_raw), "size": len(config_raw)}
    raw = _document(MANIFEST, config=of_config, layers=[_descriptor(_LAYER, *layer) for layer in layers])
    return raw, Manifest(digest_of(raw), MANIFEST, {digest_of(config_raw): len(config_raw), **dict(layers)})


def index(children: Sequence[tuple[bytes, str]]) -> tuple[bytes, Manifest]:
    """An index's bytes, and what the corpus knows of it; *children* are manifests' bytes and architectures."""
    named = [
        {**_descriptor(MANIFEST, digest_of(raw), len(raw)), "platform": {"os": "linux", "architecture": architecture}}
        for raw, architecture in children
    ]
    raw = _document(INDEX, manifests=named)
    return raw, Manifest(digest_of(raw), INDEX, children=tuple(digest_of(child) for child, _ in children))


def referrer(subject: Json, kind: str, payload: bytes) -> tuple[bytes, Manifest]:
    """A manifest that refers to *subject* (a descriptor): a ``signature`` or an ``sbom``; *payload* is its layer."""
    artifact = _SIGNATURE if kind == "signature" else _SBOM
    raw = _document(
        MANIFEST,
        artifactType=artifact,
        config=_descriptor(_EMPTY, digest_of(b"{}"), 2),
        layers=[_descriptor(artifact, digest_of(payload), len(payload))],
        subject=subject,
    )
    blobs = {digest_of(b"{}"): 2, digest_of(payload): len(payload)}
    return raw, Manifest(digest_of(raw), MANIFEST, blobs, subject=str(subject["digest"]))


def cosign_signature(payload: bytes) -> tuple[bytes, bytes, Manifest]:
    """What cosign puts under ``sha256-HEX.sig``: config and manifest, and what the corpus knows of it."""
    raw_config = config([digest_of(payload)], "signature", "")
    layer = {**_descriptor(_SIMPLE_SIGNING, digest_of(payload), len(payload))}
    layer["annotations"] = {"dev.cosignproject.cosign/signature": "MEQCIA=="}
    of_config = _descriptor(_CONFIG, digest_of(raw_config), len(raw_config))
    raw = _document(MANIFEST, config=of_config, layers=[layer])
    blobs = {digest_of(raw_config): len(raw_config), digest_of(payload): len(payload)}
    return raw_config, raw, Manifest(digest_of(raw), MANIFEST, blobs)


def signature_tag(digest: str) -> str:
    """The tag of an image's signature, as cosign names it."""
    return f"{digest.replace(':', '-')}.sig"


def simple_signing(digest: str) -> bytes:
    """What cosign signs."""
    critical = {"image": {"docker-manifest-digest": digest}, "type": "cosign container image signature"}
    return json.dumps({"critical": critical, "optional": None}).encode()


def real_images(layout: Path) -> dict[str, bytes]:
    """The image manifests of an OCI layout, by tag."""
    named = json.loads((layout / "index.json").read_bytes())["manifests"]
    chosen = [each for each in named if each["mediaType"] == MANIFEST]
    return {
        each["annotations"]["org.opencontainers.image.ref.name"]: read_blob(layout, each["digest"]) for each in chosen
    }


def read_blob(layout: Path, digest: str) -> bytes:
    """A blob of an OCI layout."""
    return (layout / "blobs" / "sha256" / digest.partition(":")[2]).read_bytes()


def real_manifest(raw: bytes) -> Manifest:
    """What the corpus knows of a real image."""
    parsed = json.loads(raw)
    return Manifest(
        digest_of(raw), MANIFEST, {each["digest"]: each["size"] for each in (parsed["config"], *parsed["layers"])}
    )


def _document(media_type: str, **members: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, **members}).encode()


def _descriptor(media_type: str, digest: str, size: int) -> Json:
    return {"mediaType": media_type, "digest": digest, "size": size}
