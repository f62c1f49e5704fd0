"""A closed loop of streaming clients against a running server; optionally plain transformers beside it.

    make serve                                    # in one terminal
    .venv/bin/python benchmarks/load.py --reference --concurrency 1 8 16

Each client sends one request after the other: a prompt of random words, a fixed number of tokens out
(logit_bias bans the end tokens). The reference is transformers' `generate` on the embedded model, one
sequence at a time, in the same run, since machines differ and drift; read the ratio.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world")
END_TOKENS = {"0": -100, "2": -100}  # of the embedded model


@dataclass
class Load:
    """What one request saw: when each of its chunks came, in seconds after it was sent."""

    arrivals: list[float]
    tokens: int

    @property
    def time_to_first_token(self) -> float:
        return self.arrivals[0]

    @property
    def inter_token_latencies(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


async def send(client: httpx.AsyncClient, body: dict) -> Load:
    arrivals: list[float] = []
    tokens = 0
    sent = time.perf_counter()
    async with client.stream("POST", "/chat/completions", json=body) as response:
        if response.status_code != 200:
            sys.exit(f"the server answers {response.status_code}: {(await response.aread())[:500]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                arrivals.append(time.perf_counter() - sent)
            if chunk["usage"]:
                tokens = chunk["usage"]["completion_tokens"]
    return Load(arrivals, tokens)


def make_body(arguments: argparse.Namespace, rng: random.Random) -> dict:
    prompt = " ".join(rng.choice(WORDS) for _ in range(arguments.prompt_words))
    return {
        "model": arguments.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": arguments.tokens,
        "temperature": 0.7,
        "logit_bias": END_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def run(arguments: argparse.Namespace, concurrency: int) -> dict[str, float]:
    """The figures at one concurrency."""
    rng = random.Random(arguments.seed + concurrency)
    loads: list[Load] = []
    headers = {"Authorization": f"Bearer {arguments.token}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=arguments.url, headers=headers, timeout=None, limits=limits
    ) as client:

        async def loop() -> None:
            loads.extend([await send(client, make_body(arguments, rng)) for _ in range(arguments.rounds)])

        started = time.perf_counter()
        await asyncio.gather(*(loop() for _ in range(concurrency)))
        seconds = time.perf_counter() - started
    latencies = [latency for load in loads for latency in load.inter_token_latencies]
    return {
        "concurrency": concurrency,
        "tokens_per_second": sum(load.tokens for load in loads) / seconds,
        "ttft_p50": statistics.median(load.time_to_first_token for load in loads),
        "itl_p50": statistics.median(latencies),
        "itl_p99": statistics.quantiles(latencies, n=100)[98],
    }


def reference(arguments: argparse.Namespace) -> float:
    """Tokens per second of transformers' `generate`, eager, batch 1, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from inference.sources import resolve

    directory = resolve("embedded", Path(arguments.cache_directory).expanduser())
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    prompt = torch.randint(100, 40_000, (1, arguments.prompt_words))

    def generate() -> None:
        with torch.inference_mode():
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=arguments.tokens,
                max_new_tokens=arguments.tokens,
                do_sample=True,
                temperature=0.7,
            )

    generate()
    started = time.perf_counter()
    generate()
    return arguments.tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--token", default="none")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--prompt-words", type=int, default=104, help="and 31 tokens of the template")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=2, help="requests of each client")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", action="store_true", help="measure transformers' generate as well")
    parser.add_argument("--cache-directory", default="~/.cache/tiller")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    rows = [asyncio.run(run(arguments, concurrency)) for concurrency in arguments.concurrency]
    single = reference(arguments) if arguments.reference else None
    print("| streams | tok/s | TTFT p50 | ITL p50 | ITL p99 |" + (" x generate |" if single else ""))
    print("|---|---|---|---|---|" + ("---|" if single else ""))
    for row in rows:
        line = f"| {row['concurrency']} | {row['tokens_per_second']:.1f} | {row['ttft_p50'] * 1e3:.0f} ms "
        line += f"| {row['itl_p50'] * 1e3:.0f} ms | {row['itl_p99'] * 1e3:.0f} ms |"
        print(line + (f" {row['tokens_per_second'] / single:.2f} |" if single else ""))
    if single:
        print(f"\ntransformers' generate, one sequence: {single:.1f} tok/s")
    if arguments.json:
        arguments.json.write_text(json.dumps({"server": rows, "generate": single}, indent=2) + "\n")


if __name__ == "__main__":
    main()
