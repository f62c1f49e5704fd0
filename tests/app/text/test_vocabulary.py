"""A tokenizer may have more tokens than the model's embedding has rows."""

import logging
from pathlib import Path

import pytest
from tokenizers import AddedToken

from app.errors import InvalidRequest, StartError
from app.text.prompts import load_text
from app.text.vocabulary import check_embedded, check_vocabulary
from tests.app.fakes import CHAT_TEMPLATE, write_model_directory

EXTRA = ("<extra-0>", "<extra-1>", "<extra-2>", "<extra-3>")


def directory_with_extra_tokens(directory: Path, template: str = CHAT_TEMPLATE) -> tuple[Path, int]:
    """Also returns the number of tokens without EXTRA."""
    tokenizer = write_model_directory(directory, template)
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(name) for name in EXTRA])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory, size


def test_a_tokenizer_that_fits_is_not_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory, size = directory_with_extra_tokens(tmp_path)
    check_vocabulary(*load_text(directory), size + 4)
    check_vocabulary(*load_text(directory), size + 100)
    assert caplog.text == ""


def test_tokens_beyond_the_embedding_are_logged_with_examples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, size = directory_with_extra_tokens(tmp_path)
    check_vocabulary(*load_text(directory), size)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"has 4 tokens beyond the {size} rows" in record.getMessage()
    assert f"<extra-0> ({size}), <extra-1> ({size + 1}), <extra-2> ({size + 2});" in record.getMessage()


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_template_that_writes_such_a_token_is_refused(tmp_path: Path, role: str) -> None:
    loop = "{% for m in messages %}{% if m.role == ROLE %}<extra-2>{% endif %}{% endfor %}"
    template = CHAT_TEMPLATE + loop.replace("ROLE", repr(role))
    directory, size = directory_with_extra_tokens(tmp_path, template)
    check_vocabulary(*load_text(directory), size + 3)
    with pytest.raises(
        StartError, match=rf"^the chat template writes <extra-2> \(token {size + 2}\), but .* {size} "
    ):
        check_vocabulary(*load_text(directory), size)


def test_a_text_that_needs_such_a_token_is_refused(tmp_path: Path) -> None:
    directory, size = directory_with_extra_tokens(tmp_path)
    tokenizer, _ = load_text(directory)
    check_embedded(tokenizer.encode("a text"), size, "messages")
    check_embedded([], size, "messages")
    with pytest.raises(InvalidRequest, match=f"messages needs token {size + 1} of the tokenizer") as error:
        check_embedded(tokenizer.encode("a <extra-1> text"), size, "messages")
    assert error.value.param == "messages"
