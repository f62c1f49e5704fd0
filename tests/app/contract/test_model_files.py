"""What the operator's files and the size of the model change in the answers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from app.errors import StartError
from tests.app.contract.support import assert_error, chat, user
from tests.app.fakes import FakeEngine

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("has_its_own", [True, False])
async def test_the_configured_chat_template_is_used(
    serve,
    engine: FakeEngine,
    templateless: FakeEngine,
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    has_its_own: bool,
) -> None:
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    used = engine if has_its_own else templateless
    client = await serve(used, model={"name": "tiny", "chat_template": str(tmp_path / "chat.jinja")})
    assert (await chat(client, messages=[user("Hello")])).status_code == 200
    [request] = used.requests
    assert request.prompt_token_ids == tiny_tokenizer.encode("<|im_start|>Hello").ids


async def test_a_broken_configured_chat_template_ends_the_start(serve, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{% for %}")
    with pytest.raises(StartError, match="chat template"):
        await serve(model={"name": "tiny", "chat_template": str(tmp_path / "chat.jinja")})


async def test_a_text_that_needs_a_token_beyond_the_embedding_is_refused(
    serve, reworked: Callable[..., FakeEngine], tiny_tokenizer: Tokenizer
) -> None:
    """The last token of the tokenizer is the last merge of its training."""
    last = tiny_tokenizer.get_vocab_size() - 1
    client = await serve(reworked(vocab_size=last))
    text = tiny_tokenizer.decode([last])
    assert last in tiny_tokenizer.encode(text).ids
    refused = await chat(client, messages=[user(text)])
    assert_error(refused, 400, "INVALID_REQUEST", f"token {last}", param="messages")
    assert_error(
        await chat(client, logit_bias={str(last): 1}), 400, "INVALID_REQUEST", param=f"logit_bias['{last}']"
    )
    assert (await chat(client, messages=[user("!")])).status_code == 200


async def test_the_error_names_the_setting_that_limits_the_context(
    serve, reworked: Callable[..., FakeEngine]
) -> None:
    client = await serve(reworked(context_limit="engine.kv_cache_gib"))
    refused = await chat(client, messages=[user("a " * 300)])
    end = "this model's maximum context length is 256 tokens (the server's engine.kv_cache_gib limits it)"
    assert_error(refused, 400, "CONTEXT_LENGTH_EXCEEDED", end)
