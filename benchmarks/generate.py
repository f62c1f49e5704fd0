"""Measures transformers' own `generate` on the embedded model, as a reference for each machine.

    .venv/bin/python -m benchmarks.generate

Eager, one sequence, float32. Prints tokens per second. `make bench` measures this in the same run as the
servers, because machines differ and their speed drifts. Compare only the ratio.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from inference.models.sources import resolve


def measure(directory: Path, prompt_tokens: int, tokens: int) -> float:
    """Runs `generate` twice. Returns the tokens per second of the second run."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    prompt = torch.randint(100, 40_000, (1, prompt_tokens))

    def generate() -> None:
        with torch.inference_mode():
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=True,
                temperature=0.7,
            )

    generate()
    started = time.perf_counter()
    generate()
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=135)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--cache-directory", type=Path, default="~/.cache/tiller")
    arguments = parser.parse_args()
    directory = resolve("embedded", arguments.cache_directory.expanduser())
    print(measure(directory, arguments.prompt_tokens, arguments.tokens))


if __name__ == "__main__":
    main()
