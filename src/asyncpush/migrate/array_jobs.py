"""What runs the shards of a plan elsewhere: the files and commands of an AWS Batch array job or a Kubernetes Job."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.model import Plan, PlanEntry
from asyncpush.migrate.shard import PLACEHOLDER
from asyncpush.redaction import without_secrets
from asyncpush.reference import S3_SCHEME

Engine = Literal["batch", "kubernetes"]
Document: TypeAlias = dict[str, Any]

#: Tasks of an array job: AWS Batch takes 2 to 10,000, a Kubernetes Indexed Job 100,000.
_TASKS: Mapping[Engine, range] = {"batch": range(2, 10_001), "kubernetes": range(1, 100_001)}

#: How often an engine runs a shard that failed; AWS Batch allows 10.
_ATTEMPTS = 5

#: Seconds from SIGTERM to SIGKILL in Kubernetes: enough to put the journal back.
_GRACE = 60

#: Bytes of a ConfigMap (1 MiB in all).
_MAX_CONFIG_MAP = 1_000_000

#: Archives that a policy names one by one: a role's inline policies have 10,240 characters.
_NAMED_ARCHIVES = 50

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayJob:
    """An array job that migrates a plan.

    Attributes:
        plan: the plan.
        text: its text.
        shards: how many shards there are.
        at_once: how many of them run at once at most.
        journals: ``s3://BUCKET/PREFIX``, where the journals are.
        image: the container image.
        name: the name of the job.
    """

    plan: Plan
    text: str
    shards: int
    at_once: int
    journals: str
    image: str
    name: str

    @property
    def bucket(self) -> str:
        """The bucket of the journals."""
        return self.journals.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """The prefix of their keys, with a slash at its end unless it is empty."""
        prefix = self.journals.removeprefix("s3://").partition("/")[2].strip("/")
        return f"{prefix}/" if prefix else ""

    @property
    def file(self) -> str:
        """The plan's name in the container."""
        return self.plan.path.name if self.plan.path else "plan.yaml"

    @property
    def variables(self) -> Sequence[str]:
        """The variables that the plan refers to."""
        return sorted(set(_VARIABLE.findall(self.text)))

    def command(self, shard: str) -> list[str]:
        """The command of each task."""
        journal = f"s3://{self.bucket}/{self.prefix}{PLACEHOLDER}.journal"
        share = f"1/{self.at_once}"
        words = ["asyncpush", "migrate", f"/plan/{self.file}", "--shard", shard, "--share", share]
        return [*words, "--journal", journal, "--progress", "plain"]


def array_job(
    plan: Plan,
    text: str,
    engine: Engine,
    *,
    shards: int,
    at_once: int | None = None,
    journals: str | None = None,
    image: str | None = None,
    name: str | None = None,
) -> ArrayJob:
    """Check what an array job is made of.

    Raises:
        UsageError: the plan can't be migrated elsewhere, or one of the others is not valid.
    """
    stem = plan.path.stem if plan.path else "plan"
    name = name if name is not None else _name(f"asyncpush-{stem}")
    if not name or _name(name) != name:
        raise UsageError(
            f"--name {name[:100]!r} is not a name", hint="use up to 50 lower-case letters, digits and hyphens"
        )
    if shards not in _TASKS[engine]:
        tasks = _TASKS[engine]
        raise UsageError(f"--shards is {shards}", hint=f"{engine} takes {tasks.start} to {tasks.stop - 1}")
    if at_once is not None and not 1 <= at_once <= shards:
        raise UsageError(f"--at-once is {at_once}", hint="give 1 to the number of shards")
    place = f"s3://BUCKET/{name}" if journals is None else journals
    if not re.fullmatch(r"s3://[A-Za-z0-9][A-Za-z0-9.-]+(/[A-Za-z0-9!_.*'()/-]*)?", place):
        raise UsageError(f"--journals {place[:300]!r} is not a place", hint="write s3://BUCKET/PREFIX")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", image or "image"):
        raise UsageError(f"--image {(image or '')[:300]!r} is not an image", hint="write HOST/REPOSITORY:TAG")
    if local := next((entry for entry in plan.entries if entry.kind == "local" and not _is_in_s3(entry)), None):
        raise UsageError(
            f"{local.place}: {local.source} is on this machine, and not where the job runs",
            hint="migrate local sources from here, in a plan of their own",
        )
    return ArrayJob(
        plan=plan,
        text=text,
        shards=shards,
        at_once=at_once or shards,
        journals=place,
        image=image or f"ACCOUNT.dkr.ecr.REGION.amazonaws.com/{name}:latest",
        name=name,
    )


def _name(text: str) -> str:
    """*text* as a name that AWS and Kubernetes accept."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:50].strip("-")


def _is_in_s3(entry: PlanEntry) -> bool:
    return entry.location.startswith(S3_SCHEME)


# AWS


def policy(job: ArrayJob, in_ecr: Sequence[Document]) -> Document:
    """The least IAM policy of a task; *in_ecr* are the statements of what it does in ECR."""
    s3 = f"arn:{_partition_of(job)}:s3:::"
    statements = [*in_ecr]
    if objects := _objects(job.plan):
        statements.append(_statement("Archives", ["s3:GetObject"], [f"{s3}{name}" for name in objects]))
    statements += [
        _statement("Journals", ["s3:GetObject", "s3:PutObject"], [f"{s3}{job.bucket}/{job.prefix}*"]),
        # Without it, S3 does not say that there is no journal yet.
        _statement("NewJournals", ["s3:ListBucket"], [f"{s3}{job.bucket}"]),
    ]
    return {"Version": "2012-10-17", "Statement": statements}


def _partition_of(job: ArrayJob) -> str:
    """The partition of the plan's first target."""
    from asyncpush.api import partition_of  # botocore's data has them: checking a plan must not pay for its import

    regions = (target.registry.region or target.aws.region or "" for target in job.plan.targets)
    return next(map(partition_of, regions), "aws")


def _statement(name: str, actions: Sequence[str], resources: Sequence[str]) -> Document:
    return {"Sid": name, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def _objects(plan: Plan) -> list[str]:
    """The archives in S3 that are read; only S3 knows whether a colon ends a key, or belongs to it."""
    found: dict[str, None] = {}
    for entry in filter(_is_in_s3, plan.entries):
        name, colon, _ = entry.location.removeprefix(S3_SCHEME).partition(":")
        found[f"{name}*" if colon else name] = None
    if len(found) <= _NAMED_ARCHIVES:
        return list(found)
    return list(dict.fromkeys(f"{name.partition('/')[0]}/*" for name in found))


def job_definition(job: ArrayJob) -> Document:
    """The parameters of RegisterJobDefinition."""
    partition = _partition_of(job)
    secrets = [
        {"name": name, "valueFrom": f"arn:{partition}:secretsmanager:REGION:ACCOUNT:secret:{job.name}/{name}"}
        for name in job.variables
    ]
    return {
        "jobDefinitionName": job.name,
        "type": "container",
        "platformCapabilities": ["FARGATE"],
        "containerProperties": {
            "image": job.image,
            "command": job.command("auto"),
            "jobRoleArn": f"arn:{partition}:iam::ACCOUNT:role/{job.name}",
            "executionRoleArn": f"arn:{partition}:iam::ACCOUNT:role/ecsTaskExecutionRole",
            "resourceRequirements": [{"type": "VCPU", "value": "2"}, {"type": "MEMORY", "value": "4096"}],
            "environment": [{"name": "AWS_REGION", "value": "REGION"}],
            "networkConfiguration": {"assignPublicIp": "ENABLED"},
            **({"secrets": secrets} if secrets else {}),
        },
        "retryStrategy": {
            "attempts": _ATTEMPTS,
            # 2 is wrong usage: another attempt would end likewise.
            "evaluateOnExit": [{"onExitCode": "2", "action": "EXIT"}, {"onReason": "*", "action": "RETRY"}],
        },
        "propagateTags": True,
    }


def submission(job: ArrayJob) -> Document:
    """The parameters of SubmitJob."""
    return {
        "jobName": job.name,
        "jobQueue": "QUEUE",
        "jobDefinition": job.name,
        "arrayProperties": {"size": job.shards},
    }


def dockerfile(job: ArrayJob) -> str:
    """The recipe of the container image."""
    return (
        "FROM public.ecr.aws/docker/library/python:3.13-slim\n"
        f"RUN pip install --no-cache-dir asyncpush=={version('asyncpush')}\n"
        "# Copy the files that the plan names, too: policies, certificate authorities.\n"
        f"COPY {json.dumps([job.file, '/plan/'])}\n"
        "USER 1000\n"
    )


def batch_script(job: ArrayJob, in_ecr: Sequence[Document]) -> str:
    """Everything for AWS Batch, as a script to read, to edit and to run.

    Args:
        job: the job.
        in_ecr: the statements of an IAM policy that allow what its tasks do in ECR; in them, ``ACCOUNT`` and ``REGION``
            stand for the caller's own.
    """
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "ecs-tasks.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
    folder = f"s3://{job.bucket}/{job.prefix}"
    lines = [
        "#!/usr/bin/env bash",
        f"# {job.shards} shards of {job.file}, {job.at_once} at once, as an array job of AWS Batch.",
        "# Run it where the plan is. Set ACCOUNT, REGION, QUEUE and, unless --journals did, BUCKET.",
        "set -euo pipefail",
        'ACCOUNT="${ACCOUNT:-$(aws sts get-caller-identity --query Account --output text)}"',
        'REGION="${REGION:-$(aws configure get region)}"',
        'QUEUE="${QUEUE:?the job queue}"',
        *(['BUCKET="${BUCKET:?the bucket of the journals}"'] if job.bucket == "BUCKET" else ()),
        'filled() { sed -e "s/ACCOUNT/$ACCOUNT/g; s/REGION/$REGION/g; s/QUEUE/$QUEUE/g; s/BUCKET/${BUCKET:-}/g"; }',
        "",
        "# 1. The image: asyncpush and the plan.",
        *_here("Dockerfile.asyncpush", dockerfile(job), fill=False),
        f"image=$(echo {shlex.quote(job.image)} | filled)",
        'docker build -t "$image" -f Dockerfile.asyncpush .',
        'docker push "$image"',
        "",
        "# 2. What a task may do, and nothing else.",
        *_here("trust.json", _json(trust)),
        *_here("policy.json", _json(policy(job, in_ecr))),
        f"aws iam create-role --role-name {job.name} --assume-role-policy-document file://trust.json",
        f"aws iam put-role-policy --role-name {job.name} --policy-name {job.name} --policy-document file://policy.json",
        "",
        f"# 3. The job. With maxvCpus={2 * job.at_once}, the compute environment runs {job.at_once} tasks at once:",
        f"# --share 1/{job.at_once} gives each of them that part of ECR's quotas.",
    ]
    if job.variables:
        lines.append(f"# The execution role must be able to read the secrets of: {', '.join(job.variables)}.")
    lines += [
        *_here("job-definition.json", _json(job_definition(job))),
        "aws batch register-job-definition --cli-input-json file://job-definition.json",
        *_here("job.json", _json(submission(job))),
        "aws batch submit-job --cli-input-json file://job.json",
        "",
        "# 4. Afterwards: one report, and a list of what failed.",
        f"echo asyncpush journal merge {shlex.quote(folder)} --into plan.journal --failed-out failed.txt | filled",
    ]
    return "\n".join(lines) + "\n"


def _here(file: str, text: str, *, fill: bool = True) -> list[str]:
    start = f"filled > {file} <<'END'" if fill else f"cat > {file} <<'END'"
    return [start, *text.rstrip("\n").split("\n"), "END"]


def _json(document: Document) -> str:
    return json.dumps(document, indent=2)


# Kubernetes


def kubernetes_documents(job: ArrayJob) -> list[Document]:
    """A ConfigMap with the plan, and the Indexed Job.

    Raises:
        UsageError: the plan is too large for a ConfigMap, or contains a password.
    """
    if without_secrets(job.text) != job.text:
        raise UsageError(
            f"{job.file} contains a password, which a ConfigMap must not", hint="write a variable, such as ${PASSWORD}"
        )
    if len(job.text.encode()) > _MAX_CONFIG_MAP:
        raise UsageError(
            f"{job.file} is larger than a ConfigMap can be (1 MiB)", hint="put it into the image, and mount nothing"
        )
    secrets = [{"name": name, "valueFrom": {"secretKeyRef": {"name": job.name, "key": name}}} for name in job.variables]
    container = {
        "name": "asyncpush",
        "image": job.image,
        "command": job.command(f"auto/{job.shards}"),
        "env": [
            {"name": "AWS_REGION", "value": "REGION"},
            {"name": "HOME", "value": "/tmp"},  # noqa: S108 - of the container
            *secrets,
        ],
        "resources": {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "plan", "mountPath": "/plan", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - likewise
        ],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": job.name},
            "data": {job.file: job.text},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job.name},
            "spec": {
                "completions": job.shards,
                "parallelism": job.at_once,
                "completionMode": "Indexed",
                "backoffLimitPerIndex": _ATTEMPTS - 1,
                "podFailurePolicy": {
                    "rules": [
                        # A node that goes away is no failure of the shard.
                        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                        # 2 is wrong usage: another attempt would end likewise.
                        {
                            "action": "FailIndex",
                            "onExitCodes": {"containerName": "asyncpush", "operator": "In", "values": [2]},
                        },
                    ]
                },
                "template": {
                    "metadata": {"labels": {"app.kubernetes.io/name": "asyncpush"}},
                    "spec": {
                        "restartPolicy": "Never",
                        "serviceAccountName": "asyncpush",
                        "terminationGracePeriodSeconds": _GRACE,
                        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
                        "containers": [container],
                        "volumes": [
                            {"name": "plan", "configMap": {"name": job.name}},
                            {"name": "tmp", "emptyDir": {}},
                        ],
                    },
                },
            },
        },
    ]


def kubernetes_yaml(job: ArrayJob) -> str:
    """Everything for Kubernetes, as one YAML."""
    lines = [
        f"# {job.shards} shards of {job.file}, {job.at_once} at once, as an Indexed Job: kubectl apply -f FILE",
        "# The service account asyncpush needs a role (IRSA or Pod Identity) with the policy of --engine batch.",
        f"# The image has asyncpush: pip install asyncpush=={version('asyncpush')}",
    ]
    words = [word for word in ("ACCOUNT", "BUCKET") if word in job.image or word == job.bucket]
    lines.append(f"# Replace {' and '.join(['REGION', *words])} below.")
    if job.variables:
        keys = " ".join(f"--from-literal={name}=..." for name in job.variables)
        lines.append(f"# kubectl create secret generic {job.name} {keys}")
    folder = f"s3://{job.bucket}/{job.prefix}"
    lines.append(f"# Afterwards: asyncpush journal merge {folder} --into plan.journal --failed-out failed.txt")
    return "\n".join(lines) + "\n" + _yaml(kubernetes_documents(job))


def _yaml(documents: Iterable[object]) -> str:
    """YAML in which texts of several lines stay as they are."""
    import yaml  # takes a while, and plans in JSON do without

    class Dumper(yaml.SafeDumper):  # type: ignore[misc] # yaml is untyped
        pass

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, represent)
    written: str = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False)
    return written
