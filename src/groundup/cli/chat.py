"""A conversation with a model in the terminal, in turns by the layout that it was taught.

A base model has not learned to answer: both continue one text.
"""

import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from groundup.cli.terminal import Interrupted
from groundup.errors import SettingsError
from groundup.generation.settings import Sampling
from groundup.generation.text import stream
from groundup.model.transformer import Transformer
from groundup.tokenizer.chat import Chat
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.words import nearest

REPLY_TOKENS = 60
"""Most tokens that a base model writes at once, unless `max_tokens` is set."""
CONTINUES = "what you write is added to the text, and the model goes on from there; an empty line lets it go on at once"
ANSWERS = "what you write is your turn, and the model answers; what no longer fits its context is forgotten first"
HELP = """
  /again               take back what it wrote last, and let it try with another seed
  /new                 begin a new text
  /text                show the whole text
  /set KEY=VALUE       max_tokens, temperature, top_k, top_p, seed or stop; VALUE none takes the default again
  /help                these lines
  /quit                the end (also Ctrl-D). Ctrl-C stops the model in the middle of a sentence"""


@dataclass
class Conversation:
    """One text that a person and a model write in turn; with a `chat`, turns of the two."""

    model: Transformer
    tokenizer: Tokenizer
    sampling: Sampling
    chat: Chat | None = None
    """None for a base model."""
    text: str = ""
    before_reply: str = ""
    """The text before the last reply."""
    messages: list[dict[str, str]] = field(default_factory=list)

    def say(self, line: str) -> Iterator[str]:
        """Add a line, then the model's answer or continuation, which is yielded in parts as they come."""
        if self.chat is not None:
            self.messages += [{"role": "user", "content": line}]
        else:
            joint = " " if self.text and line and not self.text[-1].isspace() else ""
            self.text += joint + line
        return self._reply()

    def again(self) -> Iterator[str]:
        """Another reply to the same text or turn, with the next seed."""
        self.text = self.before_reply
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        self.sampling = self.sampling.model_copy(update={"seed": self.sampling.seed + 1})
        return self._reply()

    def whole(self) -> str:
        """All that was written, with the marks of turns."""
        return self.chat.text(self.messages) if self.chat and self.messages else self.text

    def _reply(self) -> Iterator[str]:
        if self.chat is not None:
            yield from self._turn(self.chat)
            return
        self.before_reply = self.text
        for part in stream(self.model, self.tokenizer, self._in_sight(), self.sampling):
            self.text += part
            yield part

    def _turn(self, chat: Chat) -> Iterator[str]:
        """The model's turn, of which what came before an interruption counts."""
        room = self.model.config.context_length // 2
        while len(prompt := chat.prompt(self.messages)) > room and len(self.messages) > 2:
            del self.messages[:2]
        parts: list[str] = []
        try:
            for part in stream(self.model, chat.tokenizer, prompt, self.sampling):
                parts.append(part)
                yield part
        finally:
            self.messages += [{"role": "assistant", "content": "".join(parts)}]

    def _in_sight(self) -> str:
        """The end of the text, as far as half the context holds it: the other half is for the reply."""
        ids = self.tokenizer.encode(self.text)
        room = max(1, self.model.config.context_length // 2)
        return self.text if len(ids) <= room else self.tokenizer.decode(ids[-room:]).lstrip("\ufffd")

    def answer(self, line: str) -> Iterable[str]:
        """What is printed for a line, part by part: the model's continuation, or what a slash command says.

        Raises:
            SettingsError: a setting that sampling does not have, or a value that it cannot have.
        """
        match line.split():
            case ["/again", *_]:
                return self.again()
            case ["/new"]:
                self.text = self.before_reply = ""
                self.messages.clear()
                return ["(a new text)"]
            case ["/text"]:
                return [self.whole() or "(nothing yet)"]
            case ["/set", setting] if "=" in setting:
                self.sampling = self._changed(setting)
                name = setting.partition("=")[0]
                return [f"({name} = {getattr(self.sampling, name)})"]
            case ["/set", *_]:
                return ["/set takes KEY=VALUE, such as: /set temperature=0.5"]
            case ["/help"]:
                return ["  ", CONTINUES if self.chat is None else ANSWERS, HELP]
            case [first, *_] if first.startswith("/"):
                return [f"no command {line.strip()!r}; {nearest(first, COMMANDS)}"]
            case [] if self.chat is not None:
                return []
            case _:
                return self.say(line)

    def _changed(self, setting: str) -> Sampling:
        name, _, value = setting.partition("=")
        if value == "none" and name in Sampling.model_fields:
            return self.sampling.model_copy(update={name: Sampling.model_fields[name].default})
        return self.sampling.override([setting])


def talk(conversation: Conversation, lines: Iterable[str]) -> None:
    """Print a reply to each line, until there are no more or one says /quit."""
    for line in lines:
        if line.split()[:1] == ["/quit"]:
            return
        try:
            for part in conversation.answer(line):
                print(part, end="", flush=True)
            print(flush=True)
        except SettingsError as error:
            print(f"({error})")
        except Interrupted as interrupted:  # what was written so far stays in the text
            if interrupted.args != (signal.SIGINT,):
                raise
            print(" …")


def typed_lines() -> Iterator[str]:
    """Lines typed at a prompt; or, where input is no terminal, those of the file or pipe."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (importing it gives input() a history and editing)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except Interrupted as interrupted:
            print()
            if interrupted.args != (signal.SIGINT,):
                raise
            return


COMMANDS = ("/again", "/new", "/text", "/set", "/help", "/quit")
