"""`biobert-cnn bench-serve`: load for a model server, and what it makes of it.

Open loop: requests are sent at times drawn beforehand (a Poisson process of the given rate), whether or not earlier
ones have been answered, as independent users do. Latency counts from the time a request was due, so that a server
that stalls cannot hide it ("coordinated omission").
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from serving.client_core import (
    PREDICT_METHOD,
    TLS,
    Options,
    channel_credentials,
    channel_options,
    make_requests,
    metadata,
)

# Filler of a sentence's length, for when no file of texts is given.
_WORDS = "patients with reduced ejection fraction were randomly assigned to receive the drug or placebo daily"


@dataclass(frozen=True)
class Report:
    """What a run found; latencies in milliseconds from the time a request was due."""

    sent: int
    seconds: float
    codes: dict[str, int]
    latencies_ms: tuple[float, ...]  # of answered requests, sorted
    failed_ms: tuple[float, ...] = ()  # of the others, sorted

    def percentile(self, share: float) -> float | None:
        return _percentile(self.latencies_ms, share)

    def summary(self) -> dict[str, object]:
        answered = self.codes.get("OK", 0)
        points = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
        return {
            "sent": self.sent,
            "answered": answered,
            "refused_or_failed": {k: v for k, v in sorted(self.codes.items()) if k != "OK"},
            "seconds": round(self.seconds, 3),
            "answered_per_s": round(answered / self.seconds, 2) if self.seconds else 0.0,
            "latency_ms": {
                **{name: _rounded(self.percentile(share)) for name, share in points.items()},
                "max": _rounded(self.latencies_ms[-1] if self.latencies_ms else None),
            },
            "refused_or_failed_ms": {
                name: _rounded(_percentile(self.failed_ms, share)) for name, share in (("p50", 0.5), ("p99", 0.99))
            },
        }


def _percentile(values: Sequence[float], share: float) -> float | None:
    """Of sorted values; None of none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def arrivals(rate: float, duration_s: float, seed: int) -> list[float]:
    """Times in seconds at which requests are due: a Poisson process."""
    generator, at = random.Random(seed), 0.0
    found: list[float] = []
    while True:
        at += generator.expovariate(rate)
        if at >= duration_s:
            return found
        found.append(at)


async def run(
    target: str,
    model_name: str,
    requests: Sequence[bytes],
    due: Sequence[float],
    options: Options,
    channels: int = 1,
) -> Report:
    """Sends serialised PredictRequests, in turn, at the times `due`."""
    credentials, arguments = channel_credentials(options), channel_options(options)
    # Channels of equal arguments would share one connection.
    made = [
        grpc.aio.insecure_channel(target, [*arguments, ("grpc.channel_id", i)])
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, [*arguments, ("grpc.channel_id", i)])
        for i in range(channels)
    ]
    calls = [c.unary_unary(PREDICT_METHOD) for c in made]
    for channel in made:
        await channel.channel_ready()
    codes: Counter[str] = Counter()
    latencies: list[float] = []
    failed: list[float] = []
    start = time.perf_counter() + 0.05

    async def one(number: int, at: float) -> None:
        try:
            await calls[number % channels](
                requests[number % len(requests)], timeout=options.timeout_s, metadata=metadata(options)
            )
            latencies.append((time.perf_counter() - start - at) * 1000)
            codes["OK"] += 1
        except grpc.RpcError as error:
            failed.append((time.perf_counter() - start - at) * 1000)
            codes[error.code().name] += 1

    tasks = []
    for number, at in enumerate(due):
        pause = start + at - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(one(number, at)))
    await asyncio.gather(*tasks)
    seconds = time.perf_counter() - start
    for channel in made:
        await channel.close()
    return Report(len(due), seconds, dict(codes), tuple(sorted(latencies)), tuple(sorted(failed)))


def _texts(path: Path | None, seed: int) -> list[str]:
    if path is not None:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not texts:
            raise SystemExit(f"{path}: holds no text; give one text a line")
        return texts
    generator = random.Random(seed)
    return [" ".join(generator.choices(_WORDS.split(), k=generator.randint(8, 60))) for _ in range(256)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("biobert-cnn bench-serve", description="Load for a model server, in an open loop.")
    parser.add_argument("--target", default="127.0.0.1:8500", help="host:port of the gRPC API")
    parser.add_argument("--model_name", default="biobert_cnn")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second, on average")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds")
    parser.add_argument("--batch", type=int, default=1, help="texts in a request")
    parser.add_argument("--texts", type=Path, help="file of texts, one a line; default: filler")
    parser.add_argument("--pairs", action="store_true", help="send each text as its own second segment, too")
    parser.add_argument("--timeout", type=float, default=10.0, help="deadline of a request, seconds")
    parser.add_argument("--channels", type=int, default=1, help="connections")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tls_roots", type=Path, help="PEM file of authorities; switches TLS on")
    parser.add_argument("--token_file", type=Path, help="file with the bearer token")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    return parser


def main(argv: Sequence[str]) -> int:
    """The command. Exit status: 0 if any request was answered, 1 if none, 2 for wrong usage."""
    args = _parser().parse_args(argv)
    if args.rate <= 0 or args.duration <= 0 or args.batch < 1 or args.channels < 1:
        print("--rate, --duration, --batch and --channels must be positive", file=sys.stderr)
        return 2
    options = Options(
        timeout_s=args.timeout,
        batch_size=args.batch,
        batch_bytes=1 << 30,
        tls=None if args.tls_roots is None else TLS.from_files(args.tls_roots),
        token=None if args.token_file is None else args.token_file.read_text(encoding="utf-8").strip(),
    )
    texts = _texts(args.texts, args.seed)
    texts += texts[: -len(texts) % args.batch]  # whole requests only
    made = make_requests(args.model_name, options, texts, texts if args.pairs else None)
    requests = [message.SerializeToString() for _, message in made]
    due = arrivals(args.rate, args.duration, args.seed)
    try:
        report = asyncio.run(
            asyncio.wait_for(
                run(args.target, args.model_name, requests, due, options, args.channels),
                args.duration + args.timeout + 30,
            )
        )
    except TimeoutError:
        print(f"{args.target}: no server answers", file=sys.stderr)
        return 1
    summary = report.summary()
    if args.json:
        print(json.dumps(summary))
    else:
        for name, value in summary.items():
            print(f"{name:18} {value if not isinstance(value, dict) else json.dumps(value)}")
    return 0 if report.codes.get("OK") else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
