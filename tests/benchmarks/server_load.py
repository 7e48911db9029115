"""The load that `model_server.py` puts on a server, from a process of its own: `server_load.py JOB`, a JSON object."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import grpc

from serving import bench
from serving.client_core import Options, make_requests
from serving.errors import Code

TEXTS = Path(__file__).resolve().parents[2] / "pipeline" / "data" / "pmc_rct_sections" / "test.csv"


def read_texts(count: int, seed: int = 0) -> list[str]:
    with TEXTS.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    random.Random(seed).shuffle(texts)
    return (texts * (count // len(texts) + 1))[:count]


def serialized(texts: list[str], rows: int) -> list[bytes]:
    options = Options(batch_size=rows, batch_bytes=1 << 30)
    return [message.SerializeToString() for _, message in make_requests("m", options, texts, None)]


async def saturate(target: str, requests: list[bytes], under_way: int, seconds: float) -> tuple[int, int, float]:
    """Keeps `under_way` requests under way for a time; returns answered, refused, and the seconds it took."""
    answered = refused = 0
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(bench.PREDICT_METHOD)
        started = time.perf_counter()
        end = started + seconds

        async def worker(number: int) -> None:
            nonlocal answered, refused
            at = number
            while time.perf_counter() < end:
                try:
                    await call(requests[at % len(requests)], timeout=60)
                    answered += 1
                except grpc.RpcError as error:
                    if error.code().value[0] != Code.RESOURCE_EXHAUSTED:
                        raise
                    refused += 1
                    await asyncio.sleep(0.001)
                at += under_way

        await asyncio.gather(*(worker(i) for i in range(under_way)))
        return answered, refused, time.perf_counter() - started


def load_process(job: dict) -> dict:
    """What the child does: from target, texts, rows a request, seconds, and requests under way or rate, to findings."""
    requests = serialized(read_texts(job["texts"]), job["rows"])
    asyncio.run(saturate(job["target"], requests, job.get("under_way", 8), job["warm_s"]))
    print("warm", flush=True)
    sys.stdin.readline()
    before = resource.getrusage(resource.RUSAGE_SELF)
    if "rate" in job:
        due = bench.arrivals(job["rate"], job["seconds"], seed=1)
        report = asyncio.run(bench.run(job["target"], "m", requests, due, Options(timeout_s=60)))
        found = {"offered_requests_s": round(len(due) / job["seconds"], 1), **report.summary()}
    else:
        answered, refused, took = asyncio.run(saturate(job["target"], requests, job["under_way"], job["seconds"]))
        found = {"answered": answered, "refused": refused, "seconds": took}
    after = resource.getrusage(resource.RUSAGE_SELF)
    return found | {"cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


class Load:
    """The child, warmed; `run` lets it go."""

    def __init__(self, **job: object):
        self._child = subprocess.Popen(
            [sys.executable, __file__, json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._child.stdout is not None
        if self._child.stdout.readline().strip() != b"warm":
            raise SystemExit("the load generator failed")

    def run(self) -> dict:
        out, _ = self._child.communicate(b"\n")
        return json.loads(out)


if __name__ == "__main__":
    print(json.dumps(load_process(json.loads(sys.argv[1]))))
