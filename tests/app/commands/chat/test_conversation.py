"""A conversation in a real terminal: commands, history, Ctrl-C, Ctrl-D, Tab."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from inference.interface.requests import GenerationRequest
from tests.app.commands.chat.conftest import Say
from tests.app.contract.support import until
from tests.app.fakes import HANG, FakeEngine, train_badly
from tests.app.terminal import CTRL_C, CTRL_D, TAB, Terminal


async def in_terminal(play: Callable[[Terminal], None], url: str, *words: str, **options: str | int) -> int:
    """Plays a conversation on another thread, because the server runs in this one. Returns its status."""

    def run() -> int:
        with Terminal("chat", "--url", url, *words, **options) as terminal:
            terminal.expect("> ")
            play(terminal)
            return terminal.wait()

    return await asyncio.to_thread(run)


def ask(terminal: Terminal, line: str, answer: str = "") -> str:
    """Enters a line. Returns what the terminal shows after it, until the next prompt."""
    terminal.send(f"{line}\n")
    terminal.expect("\n")
    terminal.expect(answer)
    return answer + terminal.expect("> ")


@pytest.fixture
def prompts(engine: FakeEngine, tiny_tokenizer: Tokenizer) -> Callable[[], list[str]]:
    """The prompts that the model has read so far."""
    return lambda: [tiny_tokenizer.decode(request.prompt_token_ids) for request in engine.requests]


async def test_each_question_follows_the_conversation_before_it(
    live_url: str, say: Say, prompts: Callable[[], list[str]]
) -> None:
    say("Aye.")

    def play(terminal: Terminal) -> None:
        ask(terminal, "first", "Aye.\n")
        ask(terminal, "second", "Aye.\n")
        ask(terminal, "/retry", "Aye.\n")
        ask(terminal, "/undo", "Forgotten: second\n")
        ask(terminal, "/system Be a pirate.")
        ask(terminal, "third", "Aye.\n")
        ask(terminal, "/clear")
        ask(terminal, "/system off")
        ask(terminal, "fourth", "Aye.\n")
        terminal.send("/quit\n")

    assert await in_terminal(play, live_url) == 0
    first, second, again, third, fourth = prompts()
    assert first == fourth.replace("fourth", "first")
    assert second == again
    assert second.index("first") < second.index("Aye.") < second.index("second")
    assert "second" not in third
    assert third.index("Be a pirate.") < third.index("first") < third.index("third")


async def test_concepts_steer_until_they_are_off(live_url: str, say: Say, engine: FakeEngine) -> None:
    say("Aye.")

    def play(terminal: Terminal) -> None:
        ask(terminal, "/concept kind -1.5")
        assert "kind=-1.5 rude=1 > " in ask(terminal, "/concept rude")
        listed = ask(terminal, "/concept")
        assert "kind" in listed
        assert "-1.5" in listed
        assert "there is no concept nobody; there are: kind, rude" in ask(terminal, "/concept nobody 1")
        for strength in ("much", "2.1", "-7", "nan"):
            assert "a strength is a number from -2 to 2" in ask(terminal, f"/concept kind {strength}")
        ask(terminal, "Hello", "Aye.\n")
        ask(terminal, "/concept rude off")
        ask(terminal, "Hello", "Aye.\n")
        ask(terminal, "/concept off")
        ask(terminal, "Hello", "Aye.\n")
        terminal.send("/quit\n")

    assert await in_terminal(play, live_url) == 0
    *steered, plain = (request.steering for request in engine.requests)
    assert [sorted(steering.strengths.values()) for steering in steered if steering] == [[-1.5, 1.0], [-1.5]]
    assert plain is None


async def test_a_concept_that_cannot_be_used_is_refused_with_the_reason(
    live_url: str, say: Say, engine: FakeEngine
) -> None:
    say("Aye.")
    engine.training = train_badly

    def play(terminal: Terminal) -> None:
        ask(terminal, "/concept rude")
        assert "the examples differ in nothing" in ask(terminal, "Hello")
        ask(terminal, "/concept off")
        assert "rude cannot be used: the examples differ in nothing" in ask(terminal, "/concept rude")
        ask(terminal, "Hello", "Aye.\n")
        terminal.send("/quit\n")

    assert await in_terminal(play, live_url) == 0


async def test_parameters_are_set_listed_and_reset(live_url: str, say: Say, engine: FakeEngine) -> None:
    say("Aye.")

    def play(terminal: Terminal) -> None:
        ask(terminal, "/set temperature 0.3")
        ask(terminal, "/set top_p=0.5")
        assert "0.3" in ask(terminal, "/set")
        ask(terminal, "Hello", "Aye.\n")
        ask(terminal, "/set temperature off")
        ask(terminal, "Hello", "Aye.\n")
        assert "there is no parameter 'x'" in ask(terminal, "/set x 1")
        assert "needs a value" in ask(terminal, "/set temperature")
        ask(terminal, "/set temperature 9")
        assert "temperature must be at most 2" in ask(terminal, "Hello")
        assert "there is no model x; there are: tiny" in ask(terminal, "/model x")
        assert "tiny" in ask(terminal, "/model")
        assert "there is no command /x; /help lists them" in ask(terminal, "/x")
        assert "/concept NAME" in ask(terminal, "/help")
        terminal.send("/quit\n")

    assert await in_terminal(play, live_url) == 0
    sampling = [request.sampling for request in engine.requests]
    assert [(one.temperature, one.top_p) for one in sampling] == [(0.3, 0.5), (1.0, 0.5)]


async def test_ctrl_c_stops_an_answer_and_keeps_what_has_come(
    live_url: str, say: Say, engine: FakeEngine, prompts: Callable[[], list[str]]
) -> None:
    say("Aye, a long story")
    whole = engine.script

    def endless(request: GenerationRequest):
        yield from list(whole(request))[:-1]
        yield HANG

    def play(terminal: Terminal) -> None:
        engine.script = endless
        terminal.send("first\n")
        terminal.expect("Aye, a long story")
        terminal.send(CTRL_C)
        terminal.expect("[stopped; Ctrl-C again leaves]")
        terminal.expect("> ")
        engine.script = whole
        ask(terminal, "second", "Aye, a long story\n")
        terminal.send(CTRL_D)

    assert await in_terminal(play, live_url) == 0
    assert "Aye, a long story" in prompts()[1]
    await until(lambda: len(engine.aborts) == 1)


async def test_a_question_without_an_answer_is_taken_back_and_can_be_asked_again(
    live_url: str, say: Say, engine: FakeEngine, prompts: Callable[[], list[str]]
) -> None:
    say("Aye.")

    def play(terminal: Terminal) -> None:
        engine.available = False
        assert "try again in" in ask(terminal, "first")
        engine.available = True
        ask(terminal, "/retry", "Aye.\n")
        ask(terminal, "second", "Aye.\n")
        terminal.send("/quit\n")

    assert await in_terminal(play, live_url) == 0
    *_, first, second = prompts()
    assert "first" in first
    assert second.count("first") == 1


async def test_ctrl_c_drops_what_is_typed_and_leaves_only_after_two_empty_lines(
    live_url: str, engine: FakeEngine
) -> None:
    def drop(terminal: Terminal, text: str) -> None:
        terminal.send(text)
        terminal.expect(text.rpartition("\n")[2])
        terminal.send(CTRL_C)
        terminal.expect("> ")

    def play(terminal: Terminal) -> None:
        drop(terminal, "a question")
        drop(terminal, "another one")
        drop(terminal, "two lines \\\nof a third")
        for _ in range(2):
            terminal.send(CTRL_C)
            terminal.expect("\n")

    assert await in_terminal(play, live_url) == 0
    assert engine.requests == []


async def test_tab_completes_commands_concepts_and_parameters(live_url: str, engine: FakeEngine) -> None:
    def play(terminal: Terminal) -> None:
        terminal.send(f"/con{TAB}")
        terminal.expect("/concept ")
        terminal.send(f"ru{TAB}")
        terminal.expect("rude ")
        terminal.send("0.5\n")
        terminal.expect("rude=0.5 > ")
        terminal.send(f"/set presence{TAB}")
        terminal.expect("presence_penalty ")
        terminal.send("1\n")
        terminal.expect("> ")
        terminal.send("/quit\n")

    assert await in_terminal(play, live_url) == 0


async def test_several_lines_can_be_pasted_or_continued(
    live_url: str, say: Say, prompts: Callable[[], list[str]]
) -> None:
    say("Aye.")

    def play(terminal: Terminal) -> None:
        terminal.send("\x1b[200~one\ntwo\x1b[201~\n")
        terminal.expect("Aye.\n")
        terminal.expect("> ")
        terminal.send("/clear\n")
        terminal.expect("> ")
        terminal.send("one\\\n")
        terminal.expect("... ")
        terminal.send("two\n")
        terminal.expect("Aye.\n")
        terminal.expect("> ")
        terminal.send(CTRL_D)

    assert await in_terminal(play, live_url) == 0
    pasted, continued = prompts()
    assert "one\ntwo" in pasted
    assert pasted == continued


async def test_an_answer_cannot_control_the_terminal(live_url: str, say: Say) -> None:
    say("\x1b]0;title\x07 done")

    def play(terminal: Terminal) -> None:
        ask(terminal, "Hello", "\\x1b]0;title\\x07 done\n")
        terminal.send(CTRL_D)

    assert await in_terminal(play, live_url) == 0


async def test_without_colours_and_on_a_dumb_terminal_nothing_is_coloured(live_url: str, say: Say) -> None:
    say("Aye.")

    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = []

        def play(terminal: Terminal, shown: list[str] = shown) -> None:
            ask(terminal, "Hello", "Aye.\n")
            ask(terminal, "/nothing")
            terminal.send(CTRL_D)
            shown.append(terminal.raw)

        assert await in_terminal(play, live_url, **environment) == 0
        assert not any(f"\x1b[{colour}m" in shown[0] for colour in (31, 32)), shown


async def test_redirected_answers_go_without_prompts(live_url: str, say: Say, tmp_path: Path) -> None:
    say("Aye.")

    def play(terminal: Terminal) -> None:
        terminal.send("Hello\n")
        terminal.expect("> ")
        terminal.send(CTRL_D)

    with (tmp_path / "answers").open("w") as file:
        assert await in_terminal(play, live_url, stdout=file.fileno()) == 0
    assert (tmp_path / "answers").read_text() == "Aye.\n"


async def test_a_conversation_is_saved(live_url: str, say: Say, tmp_path: Path, engine: FakeEngine) -> None:
    say("Aye.")
    notes, request, mine = (tmp_path / name for name in ("chat.md", "chat.json", "mine"))
    mine.write_text("precious")

    def play(terminal: Terminal) -> None:
        ask(terminal, "/concept kind")
        ask(terminal, "Hello", "Aye.\n")
        for file in (notes, request, notes):
            assert "Saved to" in ask(terminal, f"/save {file}")
        assert "already exists" in ask(terminal, f"/save {mine}")
        assert "needs a file" in ask(terminal, "/save")
        assert "cannot be written" in ask(terminal, "/save /dev/null/x")
        terminal.send("/quit\n")

    assert await in_terminal(play, live_url) == 0
    assert mine.read_text() == "precious"
    assert "## user\n\nHello\n\n## assistant\n\nAye.\n" in notes.read_text()
    assert '"steering_strength": {\n    "_worker/kind": 1.0' in request.read_text()
