"""Repeats the leader's runs of the model, on this process's part of it. Samples nothing."""

import torch

from inference.backends.backend import Backend
from inference.compute.attention import ForwardContext
from inference.compute.batch import assemble
from inference.compute.block_tables import DeviceTable
from inference.compute.kv_cache import KVCache
from inference.compute.steering import upload_steering
from inference.compute.transfer import Arrays, upload
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM
from inference.runner.memory import num_blocks
from inference.runner.model_runner import make_bank
from inference.steering.injection import inject
from inference.tensor_parallel.messages import Forward, read_arrays


class FollowerRunner:
    """Has what a ModelRunner has on the device: the cache of its own key heads, block tables and a bank."""

    def __init__(self, model: CausalLM, config: EngineConfig, backend: Backend) -> None:
        """At the same time, the leader must make its ModelRunner."""
        self._model = model
        self._attend = backend.attend
        self._bank = make_bank(model, config)
        count = num_blocks(model, config, backend)
        self._cache = KVCache(model.layer_shapes, count, config.block_size, model.device)
        self._cache.provide_memory()
        self._table = None if backend.attend is None else DeviceTable(model.device)
        inject(model, self._bank, backend.steering)

    @torch.inference_mode()
    def run(self, message: Forward) -> None:
        """Computes the same as the leader. All processes get the results of each layer."""
        for change in message.bank_rows:
            self._bank.write(change.row, change.read())
        batch = message.batch
        if self._table is not None:
            self._table.reserve(batch.table_rows, batch.table_width)
            for changes in message.table_changes:
                self._store(self._table, read_arrays(changes))
        steering = None
        if message.steering:
            blocks = frozenset(message.steered_blocks)
            steering = upload_steering(read_arrays(message.steering), blocks, self._model.device)
        tensors = assemble(batch, self._model.device, self._table, steering, None, [], [])
        self._model.forward(ForwardContext(tensors, self._cache, self._attend))

    def _store(self, table: DeviceTable, changes: Arrays) -> None:
        table.store(upload(changes, self._model.device))
