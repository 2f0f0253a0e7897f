"""Random requests to ECR and ECR Public, valid, nearly valid and malformed, made from botocore's service models."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

import botocore.session
from botocore.model import OperationModel, Shape

from support.emulator_client import OCI_INDEX, OCI_MANIFEST, digest_of, image_manifest, index_manifest

_LOADER = botocore.session.Session()
MODELS = [_LOADER.get_service_model(service) for service in ("ecr", "ecr-public")]

#: What no member should have, and some might take.
RUBBISH: list[Any] = [
    None, True, 0, -1, 1.5, 2**63, 10**30, "", " ", "\x00", "\ud800", "a" * 3000, "../../etc/passwd", "%2e%2e", "\n",
    [], {}, [[]], [None], {"": ""}, [{}] * 101, "sha256:", "sha256:" + "0" * 63, "SHA256:" + "A" * 64, "🐳", "None",
    "arn:aws:ecr:us-east-1:000000000000:repository/app", "9" * 12, "-", "/", "//", "a/../b", ".", "=", "AA=A",
]  # fmt: skip

BODIES = [
    b"", b"{", b"null", b"[]", b"0", b'"', b"\xff\xfe", b"{}{}", b'{"a":', b"[" * 5000, b'{"a":' * 3000, b"NaN",
    b'{"repositoryName": "app", "repositoryName": 1}', b"\x00" * 70_000,
    b'{"layerPartBlob": "AAAA", "layerPartBlob": 1}',
]  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """A request: the target's header, its body, and what a good answer to it teaches."""

    target: str
    body: bytes
    learns: str = ""


@dataclass
class Upload:
    repository: str
    id: str
    data: bytes = b""


@dataclass
class Fuzzer:
    """One client with its own dice, that remembers what it was told so that its requests make sense."""

    dice: Random
    repository: str
    uploads: list[Upload] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=lambda: [b"{}"])
    manifests: list[bytes] = field(default_factory=list)

    @property
    def repositories(self) -> list[str]:
        """One of its own, mostly, and one that all clients make and delete."""
        return [*[self.repository] * 9, "shared/by-all"]

    def request(self) -> Sent:
        """The next one."""
        kind = self.dice.random()
        if kind < 0.45:
            return self._spoiled(self._sensible(), 0.05)
        model = self.dice.choice(MODELS)
        if kind < 0.95:
            operation = model.operation_model(self.dice.choice(model.operation_names))
            return self._spoiled(_sent(model, operation.name, self._members(operation)), 0.03)
        operation_name = self.dice.choice([*model.operation_names, "", "NoSuchOperation", "a.b", "é"])
        return Sent(f"{model.metadata['targetPrefix']}.{operation_name}", self.dice.choice(BODIES))

    def learn(self, sent: Sent, answer: dict[str, Any]) -> None:
        """Remember what a good answer gave."""
        members = json.loads(sent.body)
        if sent.learns == "upload":
            self.uploads.append(Upload(members["repositoryName"], answer["uploadId"]))
        elif sent.learns == "part":
            for upload in self.uploads:
                if upload.id == members["uploadId"]:
                    upload.data += base64.b64decode(members["layerPartBlob"])
        elif sent.learns == "layer":
            self.blobs += [upload.data for upload in self.uploads if upload.id == members["uploadId"]]
            self._drop(members)
        elif sent.learns == "image":
            self.manifests.append(members["imageManifest"].encode())

    def unlearn(self, sent: Sent, code: str) -> None:
        """Remember what is gone."""
        if sent.learns in ("part", "layer") and code in ("UploadNotFoundException", "LayerPartTooSmallException"):
            self._drop(json.loads(sent.body))

    def _drop(self, members: dict[str, Any]) -> None:
        self.uploads = [upload for upload in self.uploads if upload.id != members["uploadId"]]

    def _sensible(self) -> Sent:
        step = self.dice.choice(["create", "begin", "part", "part", "complete", "complete", "put", "put", "remove"])
        name = self.dice.choice(self.repositories)
        model = MODELS[self.dice.random() < 0.2]
        if step in ("part", "complete") and self.uploads:
            upload = self.dice.choice(self.uploads)
            is_done = upload.data and step == "complete"
            return self._completion(upload) if is_done else self._part(upload)
        if step == "put":
            return self._image(name)
        if step == "create":
            return _sent(model, "CreateRepository", {"repositoryName": name})
        if step == "remove":
            ids = [{"imageTag": self._tag()}, {"imageDigest": digest_of(self._manifest())}]
            if self.dice.random() < 0.05 or name != self.repository:
                return _sent(model, "DeleteRepository", {"repositoryName": name, "force": self.dice.random() < 0.5})
            return _sent(model, "BatchDeleteImage", {"repositoryName": name, "imageIds": ids})
        return _sent(MODELS[0], "InitiateLayerUpload", {"repositoryName": name}, "upload")

    def _part(self, upload: Upload) -> Sent:
        size = self.dice.choice([1, 2, 3, 1000, 100_000])
        data = self.dice.randbytes(size)
        first = len(upload.data) + self.dice.choice([0] * 8 + [1, -1])
        members = {"repositoryName": upload.repository, "uploadId": upload.id, "partFirstByte": first}
        members |= {"partLastByte": first + size - 1, "layerPartBlob": base64.b64encode(data).decode()}
        return _sent(MODELS[0], "UploadLayerPart", members, "part")

    def _completion(self, upload: Upload) -> Sent:
        digests = [digest_of(upload.data if self.dice.random() < 0.9 else b"other")]
        members = {"repositoryName": upload.repository, "uploadId": upload.id, "layerDigests": digests}
        return _sent(MODELS[0], "CompleteLayerUpload", members, "layer")

    def _image(self, name: str) -> Sent:
        members: dict[str, Any] = {"repositoryName": name, "imageManifest": self._manifest().decode()}
        if self.dice.random() < 0.7:
            members["imageTag"] = self._tag()
        if self.dice.random() < 0.3:
            members["imageManifestMediaType"] = self.dice.choice([OCI_MANIFEST, OCI_INDEX])
        return _sent(MODELS[0], "PutImage", members, "image")

    def _manifest(self) -> bytes:
        if self.manifests and self.dice.random() < 0.3:
            return index_manifest(*self.dice.choices(self.manifests[-5:], k=2))
        if self.manifests and self.dice.random() < 0.3:
            return self.dice.choice(self.manifests)
        made = image_manifest(*self.dice.choices(self.blobs[-9:], k=2))
        if self.dice.random() < 0.2:
            document = json.loads(made)
            document[self.dice.choice(list(document))] = self.dice.choice(RUBBISH[:15])
            made = json.dumps(document).encode()
        return made

    def _tag(self) -> str:
        return self.dice.choice(["latest", "1", "2", "x.y_z", "v" * 300])

    def _members(self, operation: OperationModel) -> Any:
        return self._value(operation.input_shape, "") if operation.input_shape else {}

    def _value(self, shape: Shape, name: str) -> Any:
        if self.dice.random() < 0.03:
            return self.dice.choice(RUBBISH)
        match shape.type_name:
            case "structure":
                return self._structure(shape)
            case "list":
                count = self._number(shape, 1, 3)
                return [self._value(shape.member, name) for _ in range(min(count, 120))]
            case "map":
                return {self._text(shape.key, "key"): self._value(shape.value, "value") for _ in range(2)}
            case "string":
                return self._text(shape, name)
            case "integer" | "long":
                return self._number(shape, 0, 200)
            case "boolean":
                return self.dice.random() < 0.5
            case "blob":
                return base64.b64encode(self.dice.randbytes(self.dice.randrange(3000))).decode()
            case _:
                return self.dice.choice([0, 1700000000.5, "2024-01-01T00:00:00Z"])

    def _structure(self, shape: Any) -> dict[str, Any]:
        wanted = [name for name in shape.members if name in shape.required_members or self.dice.random() < 0.4]
        if wanted and self.dice.random() < 0.03:
            wanted.remove(self.dice.choice(wanted))
        made = {name: self._value(shape.members[name], name) for name in wanted}
        if self.dice.random() < 0.03:
            made["unknownMember"] = self.dice.choice(RUBBISH)
        return made

    def _number(self, shape: Shape, least: int, most: int) -> int:
        low, high = shape.metadata.get("min", least), shape.metadata.get("max", most)
        near = [low, high, low - 1, high + 1]
        number = self.dice.choice(near) if self.dice.random() < 0.1 else self.dice.randint(low, min(high, low + most))
        return max(number, 0) if shape.type_name == "list" else number

    def _text(self, shape: Shape, name: str) -> str:
        known = {
            "repositoryName": self.repositories,
            "uploadId": [upload.id for upload in self.uploads],
            "imageTag": ["latest", "1"],
            "layerDigest": [digest_of(blob) for blob in self.blobs],
            "layerDigests": [digest_of(blob) for blob in self.blobs],
            "imageDigest": [digest_of(manifest) for manifest in self.manifests],
            "registryId": ["000000000000"],
            "registryIds": ["000000000000"],
            "resourceArn": [f"arn:aws:ecr:us-east-1:000000000000:repository/{name}" for name in self.repositories],
            "imageManifest": [manifest.decode() for manifest in self.manifests],
            "prefix": ["ROOT", "team", "team/a"],
            "policyText": ["{}", '{"Version":"2012-10-17","Statement":[]}'],
        }.get(name)
        choices = getattr(shape, "enum", None) or known
        if choices and self.dice.random() < 0.95:
            return self.dice.choice(list(choices))
        return self.dice.choice(["a", "ab", "team/app", "x" * 256, "x" * 257, "key=value", "Ünïcode"])

    def _spoiled(self, sent: Sent, probability: float) -> Sent:
        """Now and then, a body with a few bytes changed, lost or doubled."""
        if self.dice.random() >= probability or not sent.body:
            return sent
        body = bytearray(sent.body)
        for _ in range(self.dice.randint(1, 3)):
            place = self.dice.randrange(len(body) + 1)
            body[place : place + self.dice.choice([0, 1, 1, 5])] = self.dice.choice(
                [b"", b'"', b"\\", b"{", b"\xff", b"0"]
            )
        return Sent(sent.target, bytes(body))


def _sent(model: Any, operation: str, members: Any, learns: str = "") -> Sent:
    return Sent(f"{model.metadata['targetPrefix']}.{operation}", json.dumps(members).encode(), learns)
