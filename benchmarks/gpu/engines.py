"""Builds engines over one model of random weights, one after the other, and frees what they hold."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator

import torch
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM

from benchmarks.gpu.budget import Deadline
from benchmarks.gpu.figures import Figure, MeasurementError, Note
from benchmarks.gpu.limits import synchronize
from benchmarks.gpu.plan import Options
from benchmarks.steering_cost import llama_config
from inference.engine import Engine
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM, LayerHook
from inference.runner.adaptation import adapt
from inference.runner.model_runner import ModelRunner

_TOLERANCE = 2**30
"""Bytes that a process may keep after all engines are gone: kernels, and workspaces of libraries."""


class Engines:
    """Loads the model once. Each engine gets a new runner: KV cache, steering bank and captured steps."""

    def __init__(self, model: str, options: Options) -> None:
        started = time.perf_counter()
        torch.manual_seed(0)
        device = torch.device(options.device)
        with device:
            network = AutoModelForCausalLM.from_config(
                llama_config(model), dtype=getattr(torch, options.dtype)
            )
        self.name = model
        self.model = CausalLM(network.eval())
        self._config = EngineConfig(
            seed=0, kv_cache_gib=options.kv_cache_gib, max_batch_tokens=options.max_batch_tokens
        )
        self._backend = adapt(self.model, self._config)
        synchronize(device)
        self.seconds = time.perf_counter() - started
        """Time to make, verify and fuse the model. First uses of kernels are part of it."""

    def measure(
        self, act: Callable[[Engine], Iterator[Figure | Note]], deadline: Deadline
    ) -> Iterator[Figure | Note]:
        """Builds an engine, yields what `act` yields, and frees the engine.

        Raises MeasurementError if the engine is still in memory at the end.
        """
        deadline.check()
        hooks: list[RemovableHandle] = []
        started = time.perf_counter()
        engine = self._build(hooks)
        seconds = time.perf_counter() - started
        yield Figure(
            self.name,
            "start of an engine",
            "KV cache, steering bank, warm-up of kernels and captured steps, without the weights",
            seconds,
            counts={"kv_cache_tokens": float(engine.stats.blocks * self._config.block_size)},
        )
        yield from act(engine)
        freed = weakref.ref(engine)
        del engine
        for hook in hooks:
            hook.remove()  # the next engine steers with its own bank
        gc.collect()
        if freed() is not None:
            raise MeasurementError("the engine is still in memory")
        empty_cache(self.model.device)

    def _build(self, hooks: list[RemovableHandle]) -> Engine:
        """Appends the handles of the runner's hooks to `hooks`."""

        def hook_layer(index: int, act: LayerHook) -> RemovableHandle:
            hooks.append(CausalLM.hook_layer(self.model, index, act))
            return hooks[-1]

        self.model.hook_layer = hook_layer
        try:
            engine = Engine(ModelRunner(self.model, self._config, self._backend), self._config)
            synchronize(self.model.device)
            return engine
        finally:
            del self.model.hook_layer


class Memory:
    """Checks that a part frees what it has allocated."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free = self._measure()

    def check(self) -> float:
        """Returns the GiB that the process has kept. Raises MeasurementError if these are too many."""
        gc.collect()
        empty_cache(self._device)
        engines = sum(type(one) in (Engine, CausalLM) for one in gc.get_objects())
        kept = self._free - self._measure()
        if engines or kept > _TOLERANCE:
            raise MeasurementError(f"{engines} engines or models and {kept / 2**30:.2f} GiB are not freed")
        return max(kept, 0) / 2**30

    def _measure(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else 0


def empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
