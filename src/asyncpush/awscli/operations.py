"""Which operations there are, and their options, from botocore's service model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeAlias

from botocore import xform_name
from botocore.model import ServiceModel

from asyncpush.ecr.models import data
from asyncpush.reference import Service

#: What a request or an answer is made of.
Json: TypeAlias = "bool | int | float | str | bytes | datetime | list[Json] | dict[str, Json] | None"
Members: TypeAlias = dict[str, Json]

#: ECR Public has no batch-get-image and no get-download-url-for-layer; the rest is in both.
_OPERATIONS = (
    "BatchCheckLayerAvailability",
    "BatchGetImage",
    "CompleteLayerUpload",
    "CreateRepository",
    "DescribeImages",
    "DescribeRepositories",
    "GetDownloadUrlForLayer",
    "InitiateLayerUpload",
    "PutImage",
    "UploadLayerPart",
)


@dataclass(frozen=True, slots=True)
class Option:
    """A member of an operation's input, as an option.

    Attributes:
        name: what is written, such as ``--upload-id``.
        member: the member's name, such as ``uploadId``.
        shape: its botocore shape.
        required: whether the operation needs it.
        shown: whether help and synopsis show it; what pagination sets itself is not.
    """

    name: str
    member: str
    shape: Any
    required: bool
    shown: bool = True

    @property
    def attribute(self) -> str:
        """Its name in argparse's namespace; no member of any input can have it."""
        return f"member:{self.member}"


@dataclass(frozen=True, slots=True)
class Paging:
    """How an operation's answers come in pages: which members carry the token and the limit (botocore's paginators)."""

    config: dict[str, Any]

    @property
    def members(self) -> tuple[str, ...]:
        """The members of the input that ask for a page by hand."""
        return self.config["input_token"], self.config["limit_key"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        service: whose it is.
        name: what is written, such as ``complete-layer-upload``.
        model: its botocore model.
        options: its input's members, in the model's order.
        paging: how its answers come in pages; None if they do not.
    """

    service: Service
    name: str
    model: Any
    options: tuple[Option, ...]
    paging: Paging | None

    @property
    def method(self) -> str:
        """The name of a client's method for it."""
        return str(xform_name(self.model.name))

    @property
    def needs_upload_body(self) -> bool:
        """Whether its body is a part of a layer."""
        return bool(self.model.name == "UploadLayerPart")


@cache
def operations(service: Service) -> dict[str, Operation]:
    """The operations of *service*, by name; blocks while it reads the model, some 30 ms."""
    loader = data()
    model = ServiceModel(loader.load_service_model(service, "service-2"), service_name=service)
    pages = loader.load_service_model(service, "paginators-1")["pagination"]
    names = [name for name in _OPERATIONS if name in model.operation_names]
    return {
        operation.name: operation
        for operation in (_operation(service, model.operation_model(name), pages) for name in names)
    }


def _operation(service: Service, model: Any, pages: dict[str, Any]) -> Operation:
    paging = Paging(pages[model.name]) if model.name in pages else None
    shape = model.input_shape
    options = tuple(
        Option(
            f"--{xform_name(member, '-')}",
            member,
            inner,
            member in shape.required_members,
            shown=paging is None or member not in paging.members,
        )
        for member, inner in shape.members.items()
    )
    return Operation(service, xform_name(model.name, "-"), model, options, paging)
