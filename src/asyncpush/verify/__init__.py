"""Prove that images are whole in ECR: every manifest has its digest, and every blob is there; deep, byte for byte."""

from __future__ import annotations

from asyncpush.verify.image import Proofs, Verifier, reads_at_once, verify_all, verify_image
from asyncpush.verify.results import (
    Problem,
    SettingDifference,
    SettingsVerification,
    Verification,
    VerificationFailure,
    VerificationTarget,
    VerificationWatcher,
    expected_targets,
    parse_target,
)

__all__ = [
    "Problem",
    "Proofs",
    "SettingDifference",
    "SettingsVerification",
    "Verification",
    "VerificationFailure",
    "VerificationTarget",
    "VerificationWatcher",
    "Verifier",
    "expected_targets",
    "parse_target",
    "reads_at_once",
    "verify_all",
    "verify_image",
]
