"""Tries a chat template on small conversations when the server starts. Knows no tokenizer.

The trial finds templates that cannot be used, and the form in which a template reads texts. It also shows
what the template itself writes: the tokens that no message may contain, and the token that closes an
assistant's turn.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from app.errors import ApiError, InvalidRequest, StartError
from app.text.chat_template import ChatTemplate, Turns

_log = logging.getLogger(__name__)

# Words that no template contains.
_ANSWER = "tillertrialanswer"
_SYSTEM = ("system", "tillertrialsystem")
_USER = ("user", "tillertrialquestion")
_LONGER = [_USER, ("assistant", _ANSWER), ("user", "tillertriallast")]
_CONVERSATIONS: tuple[Turns, ...] = ([_USER], [_SYSTEM, _USER], _LONGER, [_SYSTEM, *_LONGER])


@dataclass(frozen=True)
class Trial:
    """A chat template, and what came of each conversation of the trial."""

    template: ChatTemplate
    rendered: list[tuple[Turns, str]]
    faults: list[ApiError]
    """The errors of the conversations that could not be rendered."""

    @property
    def reads_user(self) -> bool:
        """Whether the last user's text is in each rendered conversation."""
        return all(turns[-1][1] in text.casefold() for turns, text in self.rendered)

    @property
    def num_texts_read(self) -> int:
        """How many of the messages' texts are in the rendered conversations."""
        return sum(words in text.casefold() for turns, text in self.rendered for _, words in turns)

    @property
    def texts(self) -> list[str]:
        """The rendered conversations."""
        return [text for _, text in self.rendered]

    def closing_token(self, names: Iterable[str]) -> str | None:
        """The longest of `names` that follows an assistant's text, after any white space. None: none does."""
        for text in self.texts:
            _, answer, rest = text.partition(_ANSWER)
            found = [name for name in names if answer and rest.lstrip().startswith(name)]
            if found:
                return max(found, key=len)
        return None


def try_template(template: ChatTemplate) -> Trial:
    """Tries the template with texts as strings and as lists of parts, and chooses the form that it reads.

    Raises StartError if the template renders no conversation, or drops the user's text in both forms.
    """
    trials = [_try(template), _try(ChatTemplate(template.source, template.variables, as_parts=True))]
    trial = max(trials, key=lambda trial: (bool(trial.rendered) and trial.reads_user, trial.num_texts_read))
    if not any(trial.rendered for trial in trials):
        raise StartError(f"the chat template cannot be used: {trial.faults[0].message}")
    if not trial.reads_user:
        rule = "the model's chat template drops the user's text"
        raise StartError(f"{rule}, given as a string and given as a list of text parts")
    for fault in trial.faults:
        if not isinstance(fault, InvalidRequest):
            _log.warning(
                "the chat template fails for some conversations: %(fault)s", {"fault": fault.message}
            )
    return trial


def _try(template: ChatTemplate) -> Trial:
    rendered, faults = [], []
    for turns in _CONVERSATIONS:
        try:
            rendered.append((turns, template.render(turns)))
        except ApiError as error:
            faults.append(error)
    return Trial(template, rendered, faults)
