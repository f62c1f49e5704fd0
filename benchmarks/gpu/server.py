"""Measures the whole server with a model of random weights: gateway, worker and streaming clients."""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from app.bench.client import Target, Workload
from app.bench.figures import Figures, Measurement, summarize
from app.bench.load import Plan, compare
from benchmarks.gpu.speed import Figure
from benchmarks.peers.processes import ServerProcess
from benchmarks.peers.servers import free_port

_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}[assistant] "
)


def save(config: PretrainedConfig, dtype: torch.dtype, device: torch.device, directory: Path) -> None:
    """Saves a model with random weights and no stop token, and a tokenizer of single bytes."""
    torch.manual_seed(0)
    config.eos_token_id = None
    with device:
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(directory)
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"[{i}]" for i in range(len(pieces), config.vocab_size)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(directory)


def measure(
    name: str, config: PretrainedConfig, dtype: torch.dtype, device: torch.device, plan: Plan, log: Path
) -> Iterator[Figure]:
    """Raises BenchError and ServerError."""
    scratch = Path(tempfile.mkdtemp(prefix="tiller-gpu-"))
    try:
        save(config, dtype, device, scratch / "model")
        for figures in summarize(_serve(scratch, dtype, device, plan, log), plan.workload.tokens):
            yield _figure(name, figures, plan)
    finally:
        shutil.rmtree(scratch)


def _serve(
    scratch: Path, dtype: torch.dtype, device: torch.device, plan: Plan, log: Path
) -> list[Measurement]:
    port, settings = free_port(), scratch / "tiller.json"  # JSON is valid YAML
    content = {
        "server": {"port": port},
        "model": {"name": "random", "source": str(scratch / "model")},
        "engine": {
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "max_batch_tokens": 4096,
            "max_running": max(plan.concurrencies),
        },
        "steering": {"train_at_start": False},
        "data_directory": str(scratch / "data"),
    }
    settings.write_text(json.dumps(content), encoding="utf-8")
    process = ServerProcess([sys.executable, "-m", "app.cli", "serve", "--config", str(settings)], {}, log)
    target = Target("tiller", f"http://127.0.0.1:{port}")
    try:
        process.wait_until_ready(target.url)
        return asyncio.run(_collect(target, plan))
    finally:
        process.terminate()


async def _collect(target: Target, plan: Plan) -> list[Measurement]:
    return [measurement async for _, measurement in compare([target], plan)]


def _figure(name: str, figures: Figures, plan: Plan) -> Figure:
    """The seconds are the time to first token."""
    lengths = f"{figures.point.prompt_tokens} + {plan.workload.tokens} tokens"
    failed = f", {figures.failed} failed: {figures.error}" if figures.failed else ""
    what = f"server, {figures.point.concurrency} streams of {lengths}, time to first token{failed}"
    first = figures.time_to_first_token_p50 or float("nan")
    return Figure(name, what, first, figures.output_tokens_per_second, None)


def plan(*, quick: bool) -> Plan:
    """Prompts of 1000 tokens, which the server computes while other streams run."""
    if quick:
        return Plan((2,), (64,), rounds=1, requests=1, workload=Workload(8))
    return Plan((1, 8, 64, 256), (1000,), rounds=1, requests=2, workload=Workload(128))
