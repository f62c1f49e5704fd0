"""What a decoder streams, and what `tokenizers` decodes, for any tokens."""

from collections.abc import Iterable

from hypothesis import reject
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.text.decoding.decoder import Decoder


def streamed(decoder: Decoder, ids: Iterable[int]) -> list[str]:
    """The text that each token adds, and in the end, the text that `finish` adds."""
    stream = decoder.stream()
    return [*("".join(stream.push(token_id)) for token_id in ids), "".join(stream.finish())]


def expected(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Rejects the example if the library panics, as Strip does on strings shorter than what it strips."""
    try:
        return tokenizer.decode(ids, skip_special_tokens=True)
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            reject()
        raise


def token_ids(tokenizer: Tokenizer, spare: int = 2) -> st.SearchStrategy[list[int]]:
    """Lists of any tokens, or of a few tokens that repeat. Some ids are beyond the vocabulary."""
    size = max(tokenizer.get_vocab().values()) + 1 + spare
    pools = st.lists(st.integers(0, size - 1), min_size=1, max_size=5)
    few = pools.flatmap(lambda pool: st.lists(st.sampled_from(pool), max_size=24))
    return st.lists(st.integers(0, size - 1), max_size=24) | few
