"""The picture of throughput shows the figures of docs/performance.md."""

import re

from benchmarks.peers.picture import PICTURE, read_rows


def test_the_picture_in_docs_has_the_ratios_of_the_tables() -> None:
    rates = {(row.server, row.streams): row.tokens_per_second for row in read_rows()}
    ratios = [
        rates[ours, streams] / rates[peer, streams]
        for ours, peer in (("tiller", "llama.cpp"), ("tiller-full", "vllm"))
        for server, streams in rates
        if server == ours
    ]
    shown = re.findall(r"<!-- ([\d.]+ x) -->", PICTURE.read_text())
    assert len(shown) >= 7
    assert shown == [f"{ratio:.1f} x" for ratio in ratios]
