"""Prove that images are whole in ECR: every manifest has its digest, and every blob is there; deep, byte for byte."""

from __future__ import annotations

from asyncpush.verify.image import verify_all, verify_image
from asyncpush.verify.results import (
    Problem,
    Verification,
    VerificationFailure,
    VerificationTarget,
    expected_targets,
    parse_target,
)

__all__ = [
    "Problem",
    "Verification",
    "VerificationFailure",
    "VerificationTarget",
    "expected_targets",
    "parse_target",
    "verify_all",
    "verify_image",
]
