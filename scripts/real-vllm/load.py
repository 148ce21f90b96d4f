"""Open-loop load for an OpenAI-compatible server: Poisson arrivals in phases that differ as real traffic does.

Prompts are token ids, so their lengths and shared prefixes are exact and no tokenizer is needed. Arrivals do not wait
for answers: a slow server gets a queue, as it would from real users.

    load.py --url http://127.0.0.1:8000 --model tiny --seconds 60 --out load.json
            [--mock-ctl nvml-mock-ctl --mock-state FILE]   let a mock GPU's load follow the requests in flight
"""

import argparse
import asyncio
import dataclasses
import json
import math
import pathlib
import random
import statistics
import sys
import time
import urllib.parse

FIRST_ID, LAST_ID = 2, 999  # 0 and 1 are the special tokens of the tiny model
FULL_AT = 8  # requests in flight at which the engine's batch, and so the mock GPU, is full
FOLLOW_S = 0.1  # how often the mock GPU follows the load
DRAIN_S = 60.0  # patience with the last answers


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of traffic: its share of the run, requests per second, and tokens per request."""

    name: str
    share: float
    rate: float
    shared_prefix: int
    own_prompt: int
    answer: int


# A batch of eight makes about a thousand tokens per second: "steady" asks for a third of that, "burst" for more than
# there is (so a queue grows), "long" works on prompts more than on answers.
PHASES = (
    Phase("steady", 0.30, rate=2.5, shared_prefix=64, own_prompt=24, answer=128),
    Phase("burst", 0.15, rate=12.0, shared_prefix=64, own_prompt=24, answer=128),
    Phase("silence", 0.20, rate=0.0, shared_prefix=0, own_prompt=0, answer=0),
    Phase("long", 0.20, rate=2.5, shared_prefix=0, own_prompt=1000, answer=32),
    Phase("steady", 0.15, rate=2.5, shared_prefix=64, own_prompt=24, answer=128),
)


@dataclasses.dataclass
class Answer:
    """What became of one request; times in seconds."""

    phase: int
    prompt_tokens: int
    answer_tokens: int = 0
    ttft_s: float = math.nan
    total_s: float = math.nan
    error: str = ""


class Server:
    """The server under load, and how many requests it has of ours."""

    def __init__(self, url, model):
        parts = urllib.parse.urlsplit(url)
        self.host, self.port, self.model = parts.hostname, parts.port or 80, model
        self.in_flight = 0
        self.answers = []

    async def ask(self, phase, prompt, answer):
        """One streamed completion of exactly `answer` tokens."""
        body = json.dumps(
            {
                "model": self.model,
                "prompt": prompt,
                "max_tokens": answer,
                # A model of random weights would otherwise end when it likes.
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        result = Answer(phase, len(prompt))
        self.answers.append(result)
        self.in_flight += 1
        begun = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            try:
                writer.write(head + body)
                await self._read(reader, result, begun)
            finally:
                writer.close()
        except (OSError, ValueError, asyncio.IncompleteReadError) as why:
            result.error = f"{type(why).__name__}: {why}"
        except asyncio.CancelledError:
            result.error = "no answer before the end"
            raise
        finally:
            self.in_flight -= 1

    @staticmethod
    async def _read(reader, result, begun):
        status = (await reader.readline()).decode(errors="replace").split(" ", 2)
        if len(status) < 2 or status[1] != "200":
            result.error = " ".join(status).strip() or "connection closed"
            return
        async for line in reader:
            # The chunk sizes of the transfer coding stand on lines of their own and never begin with "data:".
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("choices") and math.isnan(result.ttft_s):
                result.ttft_s = time.monotonic() - begun
            if event.get("usage"):
                result.answer_tokens = event["usage"]["completion_tokens"]
        result.total_s = time.monotonic() - begun
        if not result.answer_tokens:
            result.error = "the stream ended without usage"


def prompt_of(phase, shared, rng):
    """Token ids: the prefix all requests share, then ids of this request alone."""
    return shared[: phase.shared_prefix] + [rng.randint(FIRST_ID, LAST_ID) for _ in range(phase.own_prompt)]


async def offer(server, seconds, rng):
    """Run the phases; returns each one's bounds in unix seconds, and the requests still unanswered.

    A phase begins when all of the one before are answered, so that what is seen in it is its own.
    """
    shared = [rng.randint(FIRST_ID, LAST_ID) for _ in range(max(p.shared_prefix for p in PHASES))]
    pending, bounds = set(), []
    for number, phase in enumerate(PHASES):
        if pending:
            await asyncio.wait(pending, timeout=DRAIN_S)
        begin = time.time()
        end = time.monotonic() + phase.share * seconds
        due = time.monotonic()
        while True:
            # Arrivals are drawn one after the other, not from when we woke: lateness does not lower the rate.
            due += rng.expovariate(phase.rate) if phase.rate > 0 else math.inf
            await asyncio.sleep(max(0.0, min(due, end) - time.monotonic()))
            if due >= end:
                break
            request = server.ask(number, prompt_of(phase, shared, rng), phase.answer)
            task = asyncio.create_task(request)
            pending.add(task)
            task.add_done_callback(pending.discard)
        bounds.append((begin, time.time()))
    return bounds, pending


def busy_share(in_flight):
    """Load of the mock GPU: any decoding keeps a GPU well occupied, a full batch keeps it full."""
    return 0.0 if in_flight == 0 else round(0.4 + 0.6 * min(1.0, in_flight / FULL_AT), 2)


async def follow(server, ctl, state, gpu=0):
    """Keep a mock GPU's load at what the requests in flight would make it. Ends the program if it cannot."""
    shown = None
    while True:
        wanted = busy_share(server.in_flight)
        if wanted != shown:
            process = await asyncio.create_subprocess_exec(ctl, "load", state, str(gpu), str(wanted))
            if await process.wait() != 0:
                raise SystemExit(f"load.py: {ctl} could not set the load of the mock GPU in {state}")
            shown = wanted
        await asyncio.sleep(FOLLOW_S)


def quantile(values, share):
    """The smallest value that `share` of all do not exceed; None of nothing."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def summary(server, bounds):
    """What was offered and what came back, per phase."""
    phases = []
    for number, (begin, end) in enumerate(bounds):
        mine = [a for a in server.answers if a.phase == number]
        good = [a for a in mine if not a.error]
        ttft, total = [a.ttft_s for a in good], [a.total_s for a in good]
        tpot = [(a.total_s - a.ttft_s) / (a.answer_tokens - 1) for a in good if a.answer_tokens > 1]
        phases.append(
            {
                "name": PHASES[number].name,
                "begin": begin,
                "end": end,
                "requests": len(mine),
                "failed": len(mine) - len(good),
                "prompt_tokens": sum(a.prompt_tokens for a in good),
                "answer_tokens": sum(a.answer_tokens for a in good),
                "ttft_p50_s": quantile(ttft, 0.50),
                "ttft_p99_s": quantile(ttft, 0.99),
                "tpot_mean_s": statistics.fmean(tpot) if tpot else None,
                "total_p50_s": quantile(total, 0.50),
                "total_p99_s": quantile(total, 0.99),
            }
        )
    errors = sorted({a.error for a in server.answers if a.error})
    return {"phases": phases, "errors": errors[:5], "finished": time.time()}


async def run(args):
    """Offer the load, wait for the last answers, return the summary."""
    server = Server(args.url, args.model)
    rng = random.Random(args.seed)
    # One unrecorded request first: what an engine does once, it does now.
    await server.ask(0, [FIRST_ID] * 8, 4)
    if server.answers.pop().error:
        raise SystemExit(f"load.py: {args.url} does not answer completions of model {args.model}")
    follower = asyncio.create_task(follow(server, args.mock_ctl, args.mock_state)) if args.mock_ctl else None
    bounds, pending = await offer(server, args.seconds, rng)
    if pending:
        _, late = await asyncio.wait(pending, timeout=DRAIN_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    if follower:
        await asyncio.sleep(2 * FOLLOW_S)  # lets it show zero
        follower.cancel()
    return summary(server, bounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--mock-ctl")
    parser.add_argument("--mock-state")
    args = parser.parse_args()
    if bool(args.mock_ctl) != bool(args.mock_state):
        parser.error("--mock-ctl and --mock-state go together")
    result = asyncio.run(run(args))
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    answered = sum(p["requests"] - p["failed"] for p in result["phases"])
    return 0 if answered else 1


if __name__ == "__main__":
    sys.exit(main())
