"""What a follower decodes is what the leader has."""

import numpy as np
import pytest
import torch

from inference.compute.batch import BatchBuilder, assemble
from inference.compute.block_tables import DeviceTable
from inference.interface.config import EngineConfig
from inference.runner.rehearsal import make_sequence
from inference.scheduling.steering import BlockVectors
from inference.tensor_parallel.messages import (
    BankRow,
    Forward,
    Start,
    decode,
    encode_forward,
    encode_start,
    read_arrays,
)

CPU = torch.device("cpu")


def test_a_start() -> None:
    start = Start(EngineConfig(source="somewhere", tensor_parallel=2), "/model", 1)
    assert decode(encode_start(start)) == start


@pytest.mark.parametrize("in_place", [True, False])
def test_a_follower_assembles_the_same_batch(in_place: bool) -> None:
    builder = BatchBuilder(4, 400, CPU, in_place=in_place)
    sequences = [make_sequence([7] * 9, [3, 1, 8], 8), make_sequence([6] * 6, [5, 2], 2)]
    batch = builder.build(sequences)
    assert batch.host is not None
    message = decode(encode_forward(batch.host, {}, (), [], []))
    assert isinstance(message, Forward)
    assert not message.steering
    theirs = assemble(message.batch, CPU, DeviceTable(CPU) if in_place else None, None, None, [], [])
    for name in ("token_ids", "positions", "slot_mapping", "logit_tokens"):
        assert getattr(theirs, name).tolist() == getattr(batch, name).tolist()
    if in_place:
        assert theirs.attention_metadata is not None
        assert batch.attention_metadata is not None
        tables = batch.attention_metadata.block_tables.tolist()
        assert sorted(tables) == [[3, 1, 8], [5, 2, 0]]
        assert theirs.attention_metadata.block_tables.tolist() == tables
        assert theirs.attention_metadata.num_decodes == batch.attention_metadata.num_decodes == 1
    for group, expected in zip(theirs.groups, batch.groups, strict=True):
        assert group.tokens == expected.tokens
        assert group.slots.tolist() == expected.slots.tolist()
        assert group.query_positions.tolist() == expected.query_positions.tolist()


def test_changes_of_batches_that_did_not_run_are_sent_later() -> None:
    builder = BatchBuilder(4, 400, CPU, in_place=True)
    sequence = make_sequence([7] * 9, [3, 1, 8], 8)
    lost, batch = builder.build([sequence]), builder.build([sequence])
    assert lost.host is not None
    assert batch.host is not None
    message = decode(encode_forward(batch.host, {}, (), [], [lost.host]))
    assert isinstance(message, Forward)
    [changes] = map(read_arrays, message.table_changes)
    assert changes["new_blocks"].tolist() == [3, 1, 8]
    assert "new_blocks" not in message.arrays


def test_steering_and_rows_of_the_bank() -> None:
    vectors = BlockVectors((1, 4), np.arange(6, dtype=np.float32).reshape(2, 3))
    steering = {"rows": np.array([0, 2, 2])}
    host = BatchBuilder(4, 400, CPU, in_place=False).build([make_sequence([7], [0])]).host
    assert host is not None
    message = decode(encode_forward(host, steering, frozenset({4, 1}), [BankRow.of(2, vectors)], []))
    assert isinstance(message, Forward)
    [row] = message.bank_rows
    assert (row.row, row.read().key) == (2, vectors.key)
    assert message.steered_blocks == [1, 4]
    assert read_arrays(message.steering)["rows"].tolist() == [0, 2, 2]
