"""Tries a chat template on small conversations when the server starts. Knows no tokenizer.

The trial finds templates that cannot be used, and the form in which a template reads texts. It also shows
what the template itself writes: the tokens that no message may contain, and the token that closes an
assistant's turn.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass

from app.errors import ApiError, InvalidRequest, StartError
from app.text.chat_template import ChatTemplate, Turns

_log = logging.getLogger(__name__)

# Words that no template contains.
_ANSWER = "tillertrialanswer"
_REASONING = "tillertrialreasoning"
_SYSTEM = ("system", "tillertrialsystem")
_USER = ("user", "tillertrialquestion")
_LONGER = [_USER, ("assistant", _ANSWER), ("user", "tillertriallast")]
_CONVERSATIONS: tuple[Turns, ...] = ([_USER], [_SYSTEM, _USER], _LONGER, [_SYSTEM, *_LONGER])


@dataclass(frozen=True)
class Trial:
    """A chat template, and what came of each conversation of the trial."""

    template: ChatTemplate
    rendered: list[tuple[Turns, str]]
    faults: list[tuple[Turns, ApiError]]
    """The conversations that could not be rendered, and why."""

    @property
    def failures(self) -> list[tuple[Turns, ApiError]]:
        """Those of `faults` in which the template fails instead of refusing the conversation."""
        return [(turns, error) for turns, error in self.faults if not isinstance(error, InvalidRequest)]

    @property
    def reads_user(self) -> bool:
        """Whether the last user's text is in each rendered conversation."""
        return all(turns[-1][1] in text.casefold() for turns, text in self.rendered)

    @property
    def num_texts_read(self) -> int:
        """How many of the messages' texts are in the rendered conversations, and not as Python's lists."""
        texts = [(turns, text.casefold()) for turns, text in self.rendered if "'type': 'text'" not in text]
        return sum(words in text for turns, text in texts for _, words in turns)

    @property
    def texts(self) -> list[str]:
        """The rendered conversations."""
        return [text for _, text in self.rendered]

    def closing_token(self, names: Collection[str]) -> str | None:
        """The name of the token with which the template closes an assistant's answer. None: it does not.

        Some models close each part of an answer with a token of its own (gpt-oss: `<|end|>`), and the whole
        answer with another one. So the last turn of a conversation counts first. A token that also closes the
        assistant's reasoning does not end an answer.
        """
        last, thinking = self._render_answer(None), self._render_answer(_REASONING)
        for text in [last, *self.texts]:
            if name := _name_after(_ANSWER, text, names):
                return None if name in _between(_REASONING, _ANSWER, thinking) else name
        return None

    def _render_answer(self, reasoning: str | None) -> str:
        """A conversation that ends with an answer. Empty if the template does not render it."""
        try:
            return self.template.render(_LONGER[:2], add_generation_prompt=False, reasoning=reasoning)
        except ApiError:
            return ""


def _name_after(words: str, text: str, names: Collection[str]) -> str | None:
    """The longest of `names` that directly follows the words, perhaps after white space."""
    _, found, rest = text.partition(words)
    following = [name for name in names if found and rest.lstrip().startswith(name)]
    return max(following, key=len, default=None)


def _between(start: str, end: str, text: str) -> str:
    """What is between two words. Empty if they are not there, in this order."""
    before, found, _ = text.partition(end)
    _, begun, between = before.partition(start)
    return between if found and begun else ""


def try_template(template: ChatTemplate) -> Trial:
    """Tries the template with texts as strings and as lists of parts, and chooses the form that it reads.

    Raises StartError if the template renders no conversation, or drops the user's text in both forms.
    """
    trials = [_try(template), _try(ChatTemplate(template.source, template.variables, as_parts=True))]
    trial = max(trials, key=lambda trial: (bool(trial.rendered) and trial.reads_user, trial.num_texts_read))
    if not any(trial.rendered for trial in trials):
        raise StartError(f"the chat template cannot be used: {trial.faults[0][1].message}")
    if not trial.reads_user:
        rule = "the model's chat template drops the user's text"
        raise StartError(f"{rule}, given as a string and given as a list of text parts")
    for fault in dict.fromkeys(error.message for _, error in trial.failures):
        roles = [
            ", ".join(role for role, _ in turns) for turns, error in trial.failures if error.message == fault
        ]
        _log.warning(
            "%(fault)s, in chats of these roles: %(roles)s", {"fault": fault, "roles": "; ".join(roles)}
        )
    return trial


def _try(template: ChatTemplate) -> Trial:
    rendered, faults = [], []
    for turns in _CONVERSATIONS:
        try:
            rendered.append((turns, template.render(turns)))
        except ApiError as error:
            faults.append((turns, error))
    return Trial(template, rendered, faults)
