"""Compares the tokenizer's vocabulary with the rows of the model's embedding. Knows no requests."""

import logging
from collections.abc import Sequence

from app.errors import InvalidRequest, StartError
from app.schemas.messages import Message
from app.text.prompts import PromptRenderer
from app.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_EXAMPLES = 3

_QUESTION = Message(role="user", content="Hello")
_CHATS = ([_QUESTION], [_QUESTION, Message(role="assistant", content="Hello"), _QUESTION])


def check_vocabulary(tokenizer: Tokenizer, prompts: PromptRenderer | None, vocab_size: int) -> None:
    """Logs the tokens that the embedding of `vocab_size` rows lacks.

    Raises StartError if the chat template writes one of them, so that every chat would fail.
    """
    lacking = [token_id for token_id in range(vocab_size, tokenizer.size) if tokenizer.text_of(token_id).name]
    if not lacking:
        return
    examples = ", ".join(f"{tokenizer.text_of(one).name} ({one})" for one in lacking[:_EXAMPLES])
    _log.warning(
        "the tokenizer has %(count)d tokens beyond the %(rows)d rows of the model's embedding, such as "
        "%(examples)s; texts that need one are refused",
        {"count": len(lacking), "rows": vocab_size, "examples": examples},
    )
    for chat in _CHATS if prompts is not None else ():
        if token_id := _find_lacking(prompts, chat, vocab_size):
            raise StartError(
                f"the chat template writes {tokenizer.text_of(token_id).name} (token {token_id}), but the "
                f"model's embedding has only {vocab_size} rows: tokenizer and weights do not fit together"
            )


def check_embedded(token_ids: Sequence[int], vocab_size: int, path: str) -> None:
    """Raises INVALID_REQUEST if a text, at `path` in the request, needs a token that the embedding lacks."""
    if token_ids and (largest := max(token_ids)) >= vocab_size:
        rule = f"{path} needs token {largest} of the tokenizer, but the model knows only {vocab_size} tokens"
        raise InvalidRequest(rule, path)


def _find_lacking(prompts: PromptRenderer | None, chat: list[Message], vocab_size: int) -> int | None:
    try:
        token_ids = prompts.encode(chat) if prompts else []
    except InvalidRequest:  # the template refuses this conversation
        return None
    return next((token_id for token_id in token_ids if token_id >= vocab_size), None)
