"""Compares integer quantization with float32: perplexity and most likely token, on texts of this repository.

    .venv/bin/python -m benchmarks.quantization

The texts are the examples of the shipped steering concepts and the neutral texts of the evaluation, as
answers in a chat. Both models compute the same tokens, one text at a time: float32 with the model's own
attention, integer with the engine's, which reads rounded keys and values from its cache.
Only tokens after the shared question count. Else each token of the question would count once for each text.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from transformers import AutoTokenizer

from inference.backends import selection
from inference.backends.backend import Backend
from inference.compute.attention import ForwardContext
from inference.compute.batch import BatchBuilder
from inference.compute.kv_cache import KVCache
from inference.interface.config import EngineConfig
from inference.models import causal_lm, sources
from inference.models.causal_lm import CausalLM
from inference.runner.adaptation import quantize
from inference.runner.rehearsal import make_sequence

ROOT = Path(__file__).parent.parent
MAX_PERPLEXITY_RATIO = 1.02
MIN_AGREEMENT = 0.97


def read_texts() -> list[str]:
    texts = yaml.safe_load((ROOT / "benchmarks/steering/neutral.yaml").read_text())["texts"]
    for path in sorted((ROOT / "configs/concepts").glob("*.yaml")):
        for example in yaml.safe_load(path.read_text())["examples"]:
            texts += [example["positive"], example["negative"]]
    return texts


def render(directory: Path, texts: list[str]) -> list[torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    question = {"role": "user", "content": "Tell me something."}
    return [
        tokenizer.apply_chat_template(
            [question, {"role": "assistant", "content": text}], return_tensors="pt", return_dict=False
        )[0]
        for text in texts
    ]


@torch.inference_mode()
def paged_logits(loaded: CausalLM, backend: Backend, tokens: torch.Tensor) -> torch.Tensor:
    """The logits [T, vocab_size] of a text [T], computed as in the engine: as one chunk, over a KV cache."""
    cache = KVCache(loaded.layer_shapes, 1, len(tokens), loaded.device)
    builder = BatchBuilder(
        len(tokens), cache.padding_slot, loaded.device, in_place=backend.attend is not None
    )
    batch = builder.build([make_sequence(tokens.tolist(), [0])])
    batch = replace(batch, logit_tokens=torch.arange(len(tokens)))
    return loaded.forward(ForwardContext(batch, cache, backend.attend))


def judge(logits: torch.Tensor, tokens: torch.Tensor, first: int) -> tuple[float, torch.Tensor]:
    """Judges a text by its logits. Only the tokens from `first` on count.

    Returns their negative log probability, in nats, and the most likely token at each of their positions.
    """
    logprobs = logits.log_softmax(-1)[first - 1 : -1]
    return -float(logprobs.gather(1, tokens[first:, None]).double().sum()), logprobs.argmax(-1)


def _count_shared(texts: list[torch.Tensor]) -> int:
    """Number of tokens at the beginning that are the same in all texts."""
    columns = zip(*(text.tolist() for text in texts), strict=False)
    return next(i for i, column in enumerate(columns) if len(set(column)) > 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="embedded", help="`embedded` or a directory")
    parser.add_argument("--cache-directory", default=EngineConfig().cache_directory)
    parser.add_argument("--every", type=int, default=1, help="use only every n-th text")
    arguments = parser.parse_args()
    directory = sources.resolve(arguments.model, Path(arguments.cache_directory).expanduser())
    texts = render(directory, read_texts()[:: arguments.every])
    loaded = causal_lm.load(directory, torch.float32, torch.device("cpu"))
    backend = selection.choose_backend(
        loaded, EngineConfig(quantization="integer", cache_directory=arguments.cache_directory)
    )
    first = _count_shared(texts)
    with torch.inference_mode():
        full = [judge(loaded.reference_logits(text), text, first) for text in texts]
    quantize(loaded, backend)
    rounded = [judge(paged_logits(loaded, backend, text), text, first) for text in texts]
    predicted = sum(len(text) - first for text in texts)
    before, after = (sum(loss for loss, _ in side) / predicted for side in (full, rounded))
    equal = sum(int((a == b).sum()) for (_, a), (_, b) in zip(full, rounded, strict=True))
    agreement = equal / predicted
    ratio = math.exp(after - before)
    print(f"{len(texts)} texts, {predicted} predicted tokens")
    print(f"perplexity: float32 {math.exp(before):.3f}, integer {math.exp(after):.3f}, ratio {ratio:.4f}")
    print(f"the most likely token is the same for {agreement:.2%}")
    if ratio > MAX_PERPLEXITY_RATIO or agreement < MIN_AGREEMENT:
        limits = f"ratio at most {MAX_PERPLEXITY_RATIO}, same token for at least {MIN_AGREEMENT:.0%}"
        raise SystemExit(f"integer quantization is worse than allowed: {limits}")


if __name__ == "__main__":
    main()
