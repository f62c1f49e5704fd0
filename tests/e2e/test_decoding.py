"""Real tokenizers: those of the embedded model and of installed packages."""

import site
from pathlib import Path

from hypothesis import given, settings
from tokenizers import Tokenizer

from app.text.decoding.decoder import Decoder
from tests.app.text.comparison import expected, streamed, token_ids


def test_the_embedded_model_streams_what_the_library_decodes(embedded_directory: Path) -> None:
    check(embedded_directory / "tokenizer.json")


def test_tokenizers_of_installed_packages_stream_what_the_library_decodes() -> None:
    """There may be none."""
    for folder in site.getsitepackages():
        for file in Path(folder).rglob("*tokenizer.json"):
            check(file)


def check(file: Path) -> None:
    tokenizer = Tokenizer.from_file(str(file))
    decoder = Decoder(tokenizer)

    @given(ids=token_ids(tokenizer, spare=100))
    @settings(max_examples=300, deadline=None)
    def decodes_any_tokens(ids: list[int]) -> None:
        assert "".join(streamed(decoder, ids)) == expected(tokenizer, ids)

    decodes_any_tokens()
