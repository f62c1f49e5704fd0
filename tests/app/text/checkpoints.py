"""Small tokenizers and chat templates, built as those of real checkpoints are."""

import json
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

_RENAMED = {"<|": "<!", "|>": "!>", "</s>": "<END>", "<s>": "<BEGIN>"}
# Only as the template writes them: what it looks for in a message stays.
_RENAMED_THINKING = {"<think></think>": "<!think!></!think!>"}
_RENAMED_BRACKETS = {"[INST]": "{I}", "[/INST]": "{/I}"}

_CORPUS = ["hi there, how is <the> weather? a | b [IN ST] end im_ start /s> user assistant system"] * 4

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_REASONING = (
    "{% for message in messages %}{% set text = message['content'] %}"
    "{% if message['role'] == 'assistant' and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ text }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
_THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% set text = message['content'] %}"
    "{% if message['role'] == 'assistant' %}{% if '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<think></think>' }}{% endif %}"
    "{{ text }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
_PHI = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n'}}"
    "{% endfor %}{{ '<|assistant|>\n' }}"
)
_LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>"
    "\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def write_checkpoint(directory: Path, name: str, renamed: bool = False) -> None:
    """Writes the tokenizer and the template of one of CHECKPOINTS.

    `renamed`: all control tokens have other names.
    """
    directory.mkdir()
    changes = _RENAMED | _RENAMED_THINKING | (_RENAMED_BRACKETS if name == "mistral-first" else {})

    def rename(text: str) -> str:
        for old, new in changes.items() if renamed else ():
            text = text.replace(old, new)
        return text

    tokenizer, template = CHECKPOINTS[name](rename)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if tokenizer.token_to_id(rename("</s>")) is not None:
        config |= {"bos_token": rename("<s>"), "eos_token": rename("</s>")}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(rename(template))


Rename = Callable[[str], str]
Parts = tuple[tokenizers.Tokenizer, str]


def _special(rename: Rename, *names: str, special: bool = True, **flags: bool) -> list[AddedToken]:
    return [AddedToken(rename(name), special=special, **{"normalized": False, **flags}) for name in names]


def _byte_level(added: list[AddedToken]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens(added)
    return tokenizer


def _sentencepiece(vocabulary: list[str], scheme: str | None) -> tokenizers.Tokenizer:
    """Like the conversion of a BPE model of SentencePiece: unknown characters become bytes."""
    merges = [("▁", "h"), ("h", "i"), ("▁h", "i"), ("/", "s"), ("<", "/s"), ("▁", "a")]
    merged = ["▁", "h", "i", "a", "s", "/", "<", ">", *("".join(merge) for merge in merges)]
    letters = "bcdefgjklmnopqrtuvwxyzINST[]|_é"
    pieces = [*vocabulary, *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *letters]
    ids = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    model = models.BPE(ids, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(model)
    if scheme is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _chatml(rename: Rename) -> Parts:
    return _byte_level(_special(rename, "<|im_start|>", "<|im_end|>")), _CHATML


def _chatml_not_special(rename: Rename) -> Parts:
    return _byte_level(_special(rename, "<|im_start|>", "<|im_end|>", special=False)), _CHATML


def _reasoning(rename: Rename) -> Parts:
    control = _special(rename, "<|im_start|>", "<|im_end|>")
    start, end = rename("<think></think>").split("><")
    thinking = _special(str, f"{start}>", f"<{end}", special=False)
    return _byte_level(control + thinking), _REASONING


def _thinking(rename: Rename) -> Parts:
    """The template itself writes `<think></think>`, so these tokens are reserved."""
    return _reasoning(rename)[0], _THINKING


def _phi_3(rename: Rename) -> Parts:
    tokenizer = _sentencepiece(["<unk>"], None)
    names = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    tokenizer.add_tokens(_special(rename, *names, rstrip=True))
    return tokenizer, _PHI


def _llama_2(rename: Rename) -> Parts:
    tokenizer = _sentencepiece(["<unk>", rename("<s>"), rename("</s>")], None)
    tokenizer.add_special_tokens(_special(rename, "<unk>", "<s>", "</s>"))
    return tokenizer, _LLAMA_2


def _mistral_first(rename: Rename) -> Parts:
    tokenizer = _sentencepiece(["<unk>", rename("<s>"), rename("</s>")], "first")
    tokenizer.add_special_tokens(_special(rename, "<unk>", "<s>", "</s>", "[INST]", "[/INST]"))
    return tokenizer, _LLAMA_2


def _llama_3(rename: Rename) -> Parts:
    tokenizer = _byte_level(_special(rename, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer, _LLAMA_3


def _gemma(rename: Rename) -> Parts:
    tokenizer = _sentencepiece(["<unk>"], None)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(_special(rename, "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens(_special(str, "\n\n", "▁▁", "▁▁▁▁", special=False))
    return tokenizer, _CHATML


def _unigram(rename: Rename) -> Parts:
    """The control tokens are in the vocabulary, with the best scores of all."""
    letters = "▁abcdefghijklmnopqrstuvwxyzINST[]|_</>é\n😀"
    vocabulary = [("<unk>", 0.0), (rename("<s>"), 0.0), (rename("</s>"), 0.0)]
    vocabulary += [(letter, -5.0) for letter in letters] + [("▁hi", -3.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(_special(rename, "<s>", "</s>"))
    return tokenizer, _LLAMA_2


def _merged(rename: Rename) -> Parts:
    """BPE's merges join the name of a control token to this token."""
    vocabulary = ["<unk>", "<s>", "</s>", "<", "/", "s", ">", "a", "</", "</s", "▁"]
    merges = [("<", "/"), ("</", "s"), ("</s", ">")]
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>"))
    tokenizer.add_special_tokens(_special(rename, "<s>", "</s>"))
    return tokenizer, "{{ bos_token }}{% for message in messages %}{{ message['content'] }}</s>{% endfor %}"


CHECKPOINTS: dict[str, Callable[[Rename], Parts]] = {
    "chatml": _chatml,
    "chatml-not-special": _chatml_not_special,
    "reasoning": _reasoning,
    "thinking": _thinking,
    "phi-3": _phi_3,
    "llama-2": _llama_2,
    "mistral-first": _mistral_first,
    "llama-3": _llama_3,
    "gemma": _gemma,
    "unigram": _unigram,
    "merged": _merged,
}
