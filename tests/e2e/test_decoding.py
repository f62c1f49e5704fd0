"""Real tokenizers: that of the embedded model, and those that installed packages ship, if any."""

import site
from pathlib import Path

from hypothesis import given, settings
from tokenizers import Tokenizer

from app.text.decoding.decoder import Decoder
from tests.app.text.comparison import expected, streamed, token_ids


def test_real_tokenizers_stream_what_the_library_decodes(embedded_directory: Path) -> None:
    folders = map(Path, site.getsitepackages())
    shipped = [file for folder in folders for file in folder.rglob("*tokenizer.json")]
    for file in [embedded_directory / "tokenizer.json", *shipped]:
        check(file)


def check(file: Path) -> None:
    """Raises AssertionError if any tokens stream another text than the library decodes."""
    tokenizer = Tokenizer.from_file(str(file))
    decoder = Decoder(tokenizer)

    @given(ids=token_ids(tokenizer, spare=100))
    @settings(max_examples=300, deadline=None)
    def decodes_any_tokens(ids: list[int]) -> None:
        assert "".join(streamed(decoder, ids)) == expected(tokenizer, ids)

    decodes_any_tokens()
