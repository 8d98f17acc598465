"""The conversation: one text written in turn, commands obeyed, Ctrl-C stopping a reply and not the program."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from groundup.cli import chat
from groundup.cli.chat import Conversation, talk
from groundup.cli.terminal import Interrupted
from groundup.generation.settings import Sampling
from groundup.generation.text import generate, stream
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.chat import CHATML, Chat
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.write import save


@pytest.fixture
def conversation(llama: ModelConfig, tokenizer: Tokenizer) -> Conversation:
    torch.manual_seed(0)
    model = Transformer(llama.with_vocabulary(tokenizer.vocab_size)).eval()
    return Conversation(model, tokenizer, Sampling(max_tokens=5, seed=7))


def test_a_reply_is_what_generation_makes_of_the_text_so_far(conversation: Conversation) -> None:
    first = "".join(conversation.say("the king"))
    options = {"max_tokens": 5, "seed": 7}
    assert first == generate(conversation.model, conversation.tokenizer, "the king", **options)  # type: ignore[arg-type]
    assert conversation.text == "the king" + first
    "".join(conversation.say("went over"))
    joint = "" if first[-1:].isspace() else " "
    assert conversation.text.startswith("the king" + first + joint + "went over")


def test_again_takes_back_the_last_reply_and_tries_another_seed(conversation: Conversation) -> None:
    before = "".join(conversation.say("the king"))
    after = "".join(conversation.again())
    assert after == generate(conversation.model, conversation.tokenizer, "the king", max_tokens=5, seed=8)
    assert conversation.text == "the king" + after
    assert after != before


def test_a_text_longer_than_the_context_goes_on_from_its_end(conversation: Conversation) -> None:
    for _ in range(20):
        "".join(conversation.say("the king and the little fox"))
    assert len(conversation.tokenizer.encode(conversation.text)) > 4 * conversation.model.config.context_length
    assert conversation.text.count("the king and the little fox") >= 20


def test_commands_are_obeyed_and_mistakes_are_answered(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "the king",
        "/set top_k=3",
        "/set top_k=none",
        "/set temprature=1",
        "/set temperature=-1",
        "/set seed",
        "/text",
    ]
    talk(conversation, [*lines, "/nonsense", "/help", "/new", "/text", "/quit", "never said"])
    told = capsys.readouterr().out
    for answer in (
        "(top_k = 3)",
        "(top_k = None)",
        "unknown setting temprature; did you mean temperature?",
        "temperature is -1",
        "/set takes KEY=VALUE",
        "the king",
        "no command '/nonsense'; known here: /again",
        "/again               take back",
        "(a new text)",
        "(nothing yet)",
    ):
        assert answer in told
    assert "never said" not in told
    assert conversation.sampling == Sampling(max_tokens=5, seed=7)


def test_ctrl_c_ends_the_reply_and_not_the_conversation(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Iterator[str]:
        yield "half"
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(chat, "stream", interrupted)
    talk(conversation, ["the king", "/text"])
    assert capsys.readouterr().out == "half …\nthe kinghalf\n"


@pytest.fixture
def dialogue(conversation: Conversation) -> Conversation:
    """With a model that was taught to answer, and ends its turns at once or never as the seed has it."""
    conversation.chat = Chat.of(CHATML, conversation.tokenizer)
    return conversation


def test_a_model_that_was_taught_to_answer_is_asked_in_its_layout(dialogue: Conversation) -> None:
    reply = "".join(dialogue.say("the king"))
    prompt = "<|im_start|>user\nthe king<|im_end|>\n<|im_start|>assistant\n"
    ids = dialogue.tokenizer.encode(prompt, "all")
    assert dialogue.chat is not None
    assert reply == "".join(stream(dialogue.model, dialogue.chat.tokenizer, ids, dialogue.sampling))
    assert dialogue.whole() == f"{prompt}{reply}<|im_end|>\n"
    other = "".join(dialogue.again())
    assert other != reply and dialogue.whole() == f"{prompt}{other}<|im_end|>\n"


def test_the_end_of_a_turn_ends_a_reply_and_is_not_shown(dialogue: Conversation) -> None:
    end = dialogue.tokenizer.special["<|im_end|>"]
    dialogue.model.logits = lambda hidden: torch.eye(320)[end].expand(len(hidden), 320)  # type: ignore[method-assign]
    dialogue.sampling = Sampling(max_tokens=50, temperature=0)
    assert "".join(dialogue.say("the king")) == ""
    assert [message["role"] for message in dialogue.messages] == ["user", "assistant"]


def test_a_conversation_longer_than_the_context_forgets_its_first_turns(dialogue: Conversation) -> None:
    dialogue.model.config = dialogue.model.config.model_copy(update={"context_length": 48})
    for number in range(9):
        "".join(dialogue.say(f"the king {number}"))
    assert "the king 8" in dialogue.whole() and "the king 0" not in dialogue.whole()
    assert dialogue.chat is not None and dialogue.messages[0]["role"] == "user"
    assert len(dialogue.chat.prompt(dialogue.messages[:-1])) <= 24


def test_turns_obey_the_commands_too(dialogue: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk(dialogue, ["/again", "the king", "", "/text", "/new", "/text", "/help"])
    told = capsys.readouterr().out
    assert "(the conversation has no messages" in told and "the king<|im_end|>" in told and "(nothing yet)" in told
    assert "what you write is your turn" in told


@pytest.mark.slow
def test_in_a_real_terminal_it_says_what_it_is_and_survives_ctrl_c(conversation: Conversation, tmp_path: Path) -> None:
    model = conversation.model
    save(tmp_path, model.config, dict(model.named_parameters()), conversation.tokenizer)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "groundup", "chat", str(tmp_path), "max_tokens=100000", "temperature=0"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)

    def until(wanted: str = "", characters: int = 0) -> str:
        """What it writes, up to these words or so many characters; a hang is ended by pytest's timeout."""
        told = ""
        while wanted not in told or len(told) < characters:
            told += os.read(ours, 4096).decode("utf-8", "replace")
        return told

    assert "it only continues text" in until("> ")
    os.write(ours, b"the king\n")
    until(characters=200)  # more than the echo: it is writing
    os.write(ours, b"\x03")  # Ctrl-C, as the terminal sends it
    until("…")
    os.write(ours, b"/quit\n")
    assert process.wait(1200) == 0
    os.close(ours)
