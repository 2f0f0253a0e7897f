"""Contender: ``asyncpush migrate`` on several machines, that is in as many processes at once, one shard in each."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from job import Job, read_job


def run(job: Job) -> None:
    """Migrate the job's only source, a plan; its variant is ``WORKERS`` or ``WORKERS share``.

    What counts is the longest run of a shard: on machines of their own, processes would not start one after the other.
    """
    workers, _, share = job.variant.partition(" ")
    [plan] = job.sources
    own = ["--max-layers", str(job.concurrency), "--transport", job.transport, "--no-resume", "--quiet"]
    processes = []
    for index in range(int(workers)):
        shard = ["--shard", f"{index}/{workers}", *(["--share", f"1/{workers}"] if share else [])]
        command = [sys.executable, "-m", "asyncpush", "migrate", plan, *shard, *own, "--output", "json"]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    totals = []
    for process in processes:
        printed, _ = process.communicate()
        if process.returncode:
            sys.exit(f"a shard ended with {process.returncode}")
        totals.append(json.loads(printed)["totals"])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    details = {"images": sum(each["images"] for each in totals), "shards": [each["seconds"] for each in totals]}
    document = {"seconds": max(details["shards"]), "cpu": used.ru_utime + used.ru_stime, "details": details}
    Path(os.environ["BENCHMARK_RESULT"]).write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    run(read_job())
