"""The operations and their options, from botocore's service model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeAlias

from botocore import xform_name
from botocore.model import ServiceModel

from asyncpush.ecr.models import data_loader
from asyncpush.reference import Service

#: The values of requests and responses.
Json: TypeAlias = "bool | int | float | str | bytes | datetime | list[Json] | dict[str, Json] | None"
Members: TypeAlias = dict[str, Json]

#: ECR Public has all of these but batch-get-image and get-download-url-for-layer.
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
        name: the option, such as ``--upload-id``.
        member: the member's name, such as ``uploadId``.
        shape: its botocore shape.
        required: whether the operation needs it.
        shown: whether help and synopsis show it; members that pagination sets are hidden.
    """

    name: str
    member: str
    shape: Any
    required: bool
    shown: bool = True

    @property
    def attribute(self) -> str:
        """Its name in argparse's namespace, which no member can have."""
        return f"member:{self.member}"


@dataclass(frozen=True, slots=True)
class Paging:
    """How a response is paged: which members have the token and the limit (botocore's paginators)."""

    config: dict[str, Any]

    @property
    def members(self) -> tuple[str, ...]:
        """The members of the input that request one page."""
        return self.config["input_token"], self.config["limit_key"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        service: the service.
        name: its name on the command line, such as ``complete-layer-upload``.
        model: its botocore model.
        options: the members of its input, in the order of the model.
        paging: how its response is paged; None if it is not.
    """

    service: Service
    name: str
    model: Any
    options: tuple[Option, ...]
    paging: Paging | None

    @property
    def method(self) -> str:
        """The name of the client method."""
        return str(xform_name(self.model.name))

    @property
    def needs_upload_body(self) -> bool:
        """Whether its body is a part of a layer."""
        return bool(self.model.name == "UploadLayerPart")


@cache
def operations(service: Service) -> dict[str, Operation]:
    """The operations of *service*, by name; blocks while it reads the model, some 30 ms."""
    loader = data_loader()
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
