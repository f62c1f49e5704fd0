"""Renders messages with the model's chat template and encodes them. Knows no limits and no HTTP.

A chat template writes control tokens by name, such as `<|im_end|>`. A message may contain such a name, too.
This module encodes the text of messages only as text, so callers cannot inject control tokens.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from anyio import to_thread

from app.errors import InvalidRequest
from app.schemas.messages import Message
from app.text.chat_template import ChatTemplate, load_chat_template
from app.text.masking import Mask
from app.text.template_trial import try_template
from app.text.tokenizer import Tokenizer

# Number of characters. Shorter messages take about a millisecond, so a thread is not worth its cost.
_LONG_PROMPT = 8_192


class PromptRenderer:
    """The model's chat template and tokenizer."""

    def __init__(
        self, template: ChatTemplate, tokenizer: Tokenizer, closing_token_id: int | None = None
    ) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._mask = Mask(tokenizer.reserved_tokens, template.literals)
        sought = self._mask.secret_names
        self._renamed = ChatTemplate(template.source, template.variables, template.as_parts, sought)
        """The template as it looks for names in messages that `Mask.rename` has changed."""
        self.closing_token_id = closing_token_id
        """The token with which the template closes an assistant's turn. None: it does not."""

    async def render(self, messages: Sequence[Message]) -> list[int]:
        """Returns the token ids of the prompt. Encodes a long prompt on another thread.

        Raises INVALID_REQUEST if the template refuses the messages, INTERNAL if the template fails.
        """
        if sum(len(message.content) for message in messages) < _LONG_PROMPT:
            return self.encode(messages)
        return await to_thread.run_sync(self.encode, messages)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Like `render`, but on the calling thread."""
        now = datetime.now()  # the same for each rendering
        turns = [(message.role, message.content) for message in messages]
        stand_ins = self._mask.choose_stand_ins(turns)
        if stand_ins is None:
            raise InvalidRequest("messages contain too many different private-use characters", "messages")
        rendered = self._template.render(turns, now)
        masked = self._template.render(self._mask.hide(turns, stand_ins), now) if stand_ins else rendered
        token_ids = self._tokenizer.encode_marked(rendered)
        _, written = self._mask.split(masked)
        if self._mask.split(rendered)[1] == written and self._is_part(token_ids, written):
            return token_ids  # All control tokens are the template's own.
        if self._mask.restore(masked, stand_ins) != rendered:  # The template looks for what is masked.
            renamed = self._renamed.render(self._mask.rename(turns, stand_ins), now)
            masked = renamed if self._mask.restore(renamed, stand_ins) == rendered else masked
        return self._encode_masked(masked, stand_ins)

    def _encode_masked(self, masked: str, stand_ins: dict[int, str]) -> list[int]:
        """Encodes the names in `masked` as control tokens. Encodes all else as text, without stand-ins."""
        texts, names = self._mask.split(masked)
        texts = [self._mask.restore(text, stand_ins) for text in texts]
        token_ids = self._tokenizer.plain.encode_around(texts, names)
        if forged := self._tokenizer.plain.find_reserved(token_ids, names):
            rule = f"messages contain {forged}, which the model's tokenizer cannot encode as text"
            raise InvalidRequest(rule, "messages")
        return token_ids

    def _is_part(self, token_ids: list[int], names: list[str]) -> bool:
        """Whether all control tokens in `token_ids` are among `names`, in this order.

        A normalizer may change a message's text to the name of a control token.
        """
        written = iter(self._tokenizer.reserved_tokens[name] for name in names)
        return all(token_id in written for token_id in token_ids if token_id in self._tokenizer.reserved_ids)


def load_text(directory: Path, chat_template: Path | None = None) -> tuple[Tokenizer, PromptRenderer | None]:
    """The model's tokenizer and its prompt renderer. The second is None if the model has no chat template.

    `chat_template`: a file to use in place of the model's own template. Raises StartError.
    """
    template = load_chat_template(directory, chat_template)
    if template is None:
        return Tokenizer(directory), None
    trial = try_template(template)
    tokenizer = Tokenizer(directory, [*trial.texts, *template.literals])
    closing = trial.closing_token(tokenizer.reserved_tokens)
    closing_id = None if closing is None else tokenizer.reserved_tokens[closing]
    return tokenizer, PromptRenderer(trial.template, tokenizer, closing_id)
