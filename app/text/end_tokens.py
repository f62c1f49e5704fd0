"""Finds the tokens that end an answer, and where each is named. Knows no requests."""

from collections.abc import Mapping, Sequence

from app.schemas.models import EndToken
from app.text.prompts import PromptRenderer
from app.text.tokenizer import Tokenizer


def find_end_tokens(
    configured: Mapping[str, Sequence[int]],
    tokenizer: Tokenizer,
    prompts: PromptRenderer | None,
    vocab_size: int,
) -> list[EndToken]:
    """The union of all that the model's files name, ordered by id.

    The files of one checkpoint often disagree: a model that was trained to chat has a new end-of-turn token,
    but its configuration still names the base model's end-of-text token.

    `configured`: the ids that each configuration file names. `vocab_size`: ids from there on do not exist.
    """
    sources: dict[int, list[str]] = {}
    named = {
        **configured,
        "tokenizer": [tokenizer.eos_token_id],
        "chat template": [prompts.closing_token_id if prompts else None],
    }
    for source, token_ids in named.items():
        for token_id in token_ids:
            if token_id is not None and token_id < vocab_size:
                sources.setdefault(token_id, []).append(source)
    return [
        EndToken(token_id, tokenizer.text_of(token_id).name, sources[token_id])
        for token_id in sorted(sources)
    ]
