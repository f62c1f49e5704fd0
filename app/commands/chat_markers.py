"""Splits a text with the markers of a common chat template into what is asked and what is said."""

import re
from dataclasses import dataclass

_ROLES = (
    r"<\|im_start\|>(?P<chatml>system|user|assistant)\n",
    r"<\|start_header_id\|>(?P<llama3>system|user|assistant)<\|end_header_id\|>\s*",
    r"<start_of_turn>(?P<gemma>user|model)\n",
    r"<\|(?P<phi>system|user|assistant)\|>\n?",
    r"(?P<system><<SYS>>)\s*",
    r"(?P<user>\[INST\])\s*",
    r"(?P<assistant>\[/INST\])\s*",
)
_ROLE = re.compile("|".join(_ROLES))
_NOISE = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>|<\|begin_of_text\|>|<<?/SYS>>|<bos>|<eos>|</?s>"
)


@dataclass(frozen=True)
class Turns:
    """Empty texts if there are no markers."""

    asked: str
    """The words of system and user."""
    said: str
    """The words of the assistant."""

    @property
    def joined(self) -> str:
        return " ".join(part for part in (self.asked, self.said) if part)


def split_turns(text: str) -> Turns:
    """Knows the markers of ChatML, Llama 2 and 3, Mistral, Gemma, Phi and Zephyr."""
    asked: list[str] = []
    said: list[str] = []
    matches = list(_ROLE.finditer(text))
    for number, match in enumerate(matches):
        end = matches[number + 1].start() if number + 1 < len(matches) else len(text)
        words = _NOISE.sub("", text[match.end() : end]).strip()
        (said if _is_assistant(match) else asked).append(words)
    return Turns("\n\n".join(filter(None, asked)), "\n\n".join(filter(None, said)))


def _is_assistant(match: "re.Match[str]") -> bool:
    kind = match.lastgroup or ""
    return kind == "assistant" or match[kind] in ("assistant", "model")
