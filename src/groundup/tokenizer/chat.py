"""Chat: conversations as ids and loss weights, by the layout that a model was taught.

A model's `chat.json` names the layout: `text` is that of a base model, which has none; `chatml` is ours; `template` is
the Jinja template of an imported model. Text in a message that looks like a special token never becomes one.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from groundup.errors import DataError, GroundupError, SettingsError, UnsupportedError
from groundup.tokenizer.byte_level import cut_at
from groundup.tokenizer.declared import named_tokens, read_table
from groundup.tokenizer.template import compiled, write
from groundup.tokenizer.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, str]]
"""Each with its `role` and `content`."""
FILE = "chat.json"
CONTINUES_TEXT = {"layout": "text"}
"""What pretraining writes: the model continues text, and was not taught to answer."""
CHATML = {"layout": "chatml"}
"""What instruction tuning writes."""
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ROLES = ("system", "user", "assistant")
MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Noncharacters, which Unicode keeps free for use within a program."""


@dataclass(frozen=True)
class Chat:
    """How to converse with one model.

    >>> tokenizer = Tokenizer.learn(["user assistant low lower"], vocab_size=320)
    >>> chat = Chat.of(CHATML, tokenizer)
    >>> ids, weight = chat.render([{"role": "user", "content": "low"}, {"role": "assistant", "content": "lower"}])
    >>> tokenizer.decode(ids)
    '<|im_start|>user\\nlow<|im_end|>\\n<|im_start|>assistant\\nlower<|im_end|>\\n'
    >>> tokenizer.decode([i for i, each in zip(ids, weight) if each])
    'lower<|im_end|>'
    >>> question = [{"role": "user", "content": "low"}]
    >>> tokenizer.decode(chat.prompt(question)) == chat.text(question, open_reply=True)
    True
    """

    tokenizer: Tokenizer
    """The model's own, to which the end of a turn also ends an answer."""
    template: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    """What the template finds under names such as `bos_token`."""
    added: Mapping[str, int] = field(default_factory=dict)
    """Tokens that the template writes, though the tokenizer's files do not call them special; by text."""

    @classmethod
    def of(cls, layout: Mapping[str, Any], tokenizer: Tokenizer, origin: object = FILE) -> "Chat | None":
        """By the table of a `chat.json`; None for a base model.

        Args:
            layout: the table, such as `{"layout": "chatml"}`.
            tokenizer: the model's own.
            origin: names the table in errors.

        Raises:
            UnsupportedError: a layout that is not known here, or whose tokens this tokenizer does not have.
            DataError: a table that is not one, or a template that is none.
        """
        match layout:
            case {"layout": "text"}:
                return None
            case {"layout": "chatml"}:
                if missing := {"<|im_start|>", "<|im_end|>"} - tokenizer.special.keys():
                    wanted = " ".join(f"--special '{text}'" for text in sorted(missing))
                    raise UnsupportedError(
                        f"{origin} asks for the layout chatml, whose {', '.join(sorted(missing))} this tokenizer does "
                        f"not have: add them with `groundup tokens extend {origin} {wanted} --out NAME`"
                    )
                template, tokens = CHATML_TEMPLATE, {}
            case {"layout": "template", "template": str(template), **rest}:
                tokens = {name: text for name, text in rest.items() if isinstance(text, str) and name != "layout"}
            case {"layout": str(other)} if other != "template":
                raise UnsupportedError(f"{origin} asks for the layout {other!r}; known are text, chatml and template")
            case _:
                raise DataError(f"{origin} is damaged: it should name a layout, and with layout template its template")
        compiled(template)
        return cls(tokenizer, template, tokens)._with_its_turns()

    def _with_its_turns(self) -> "Chat":
        """With the tokens that mark turns, as a conversation shows them; the one behind a reply ends an answer."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text = self.text(turns, open_reply=True)
            added = {token: i for token, i in self.tokenizer.added.items() if token.strip() and token in text}
            chat = dataclasses.replace(self, added=added)
            ids, weight = chat.render(turns)
        except GroundupError:  # it is none that this template writes
            return self
        marks = {*self.tokenizer.special.values(), *added.values()}
        ends = {i for i, own in zip(ids, weight, strict=True) if own and i in marks}
        roles = dataclasses.replace(self.tokenizer.roles, stops=self.tokenizer.roles.stops | ends)
        return dataclasses.replace(chat, tokenizer=Tokenizer(self.tokenizer.rules, roles))

    def render(self, messages: Messages, open_reply: bool = False) -> tuple[list[int], list[int]]:
        """The ids of a conversation, and the weight of each in a loss: 1 for the content of the assistant's messages
        and the token that ends each, 0 for the rest. A token across the border of a reply counts with the reply.

        Args:
            messages: each with its `role`, which is system, user or assistant, and its `content`.
            open_reply: whether the assistant's next turn is opened at the end.

        Raises:
            SettingsError: messages that are not a conversation, or that the template refuses.
            UnsupportedError: a template that writes a turn otherwise once others follow: there are ids, of `prompt`,
                but no weights.
            DataError: a template that fails.
        """
        parts = self._parts(messages, open_reply)
        text = "".join(map("".join, (pieces for pieces, _, _ in parts)))
        replies: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = self.text(messages[:number], open_reply=True), self.text(messages[: number + 1])
                if not (after.startswith(before) and text.startswith(after)):
                    raise UnsupportedError(
                        f"the chat template writes message {number + 1} otherwise when its reply is opened or others "
                        "follow: which tokens are the assistant's cannot be told. Train on conversations that end there"
                    )
                ends = [at + len(token) for (token, *_), i, at in parts if i is not None and at < len(after)]
                is_last = ends and len(before) < ends[-1] and not text[ends[-1] : len(after)].strip()
                replies.append((len(before), ends[-1] if is_last else len(after)))
        ids: list[int] = []
        weight: list[int] = []
        for pieces, i, at in parts:
            own = self._encode(pieces, at) if i is None else [i]
            weights = [0] * len(own)
            for start, end in replies:
                first, last = (self._count("".join(pieces), at, own, border - at) for border in (start, end))
                weights[first:last] = [1] * (last - first)
            ids, weight = ids + own, weight + weights
        return ids, weight

    def prompt(self, messages: Messages) -> list[int]:
        """The ids after which the assistant's reply to the messages begins. The errors are those of `text`."""
        parts = self._parts(messages, open_reply=True)
        own = (self._encode(pieces, at) if i is None else [i] for pieces, i, at in parts)
        return list(itertools.chain.from_iterable(own))

    def text(self, messages: Messages, open_reply: bool = False) -> str:
        """A conversation as the template writes it; `messages` and `open_reply` are those of `render`.

        Raises:
            SettingsError: messages that are not a conversation, or that the template refuses.
            DataError: a template that fails.
        """
        for number, message in enumerate(messages, 1):
            _check(message, number)
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        return write(self.template, {**self.tokens, "messages": plain, "add_generation_prompt": open_reply})

    def _parts(self, messages: Messages, open_reply: bool) -> list[tuple[list[str], int | None, int]]:
        """The text, cut around the tokens that the template wrote: each part, its id if it is one, and where it begins.

        What looks like such a token in a message is marked within before the template runs; the part that holds it then
        is in pieces. The assistant may write tokens that are not special, such as those around a thought.
        """
        text, special = self.text(messages, open_reply), self.tokenizer.special
        if not messages:
            raise SettingsError("the conversation has no messages; it should have at least one, with role and content")
        taken = {*text, *self.template, *"".join(message["content"] for message in messages)}
        mark = next((mark for mark in MARKS if mark not in taken), "")
        marked = []
        for message in messages:
            refused = special if message["role"] == "assistant" else {**special, **self.added}
            marked.append({**message, "content": _mark(message["content"], refused, mark)})
        whole = text if marked == [dict(message) for message in messages] else self.text(marked, open_reply)
        if not mark or whole.replace(mark, "") != text:
            raise SettingsError(
                "a message holds the text of a special token, and the chat template makes something else of it: write "
                "it otherwise, such as with a space in it"
            )
        parts, at = [], 0
        for part, i in cut_at(whole, {**special, **self.added}):
            parts.append((part.split(mark), i, at))
            at += sum(map(len, parts[-1][0]))
        return parts

    def _encode(self, pieces: Sequence[str], at: int) -> list[int]:
        """The ids of a part; only the first has the space that some tokenizers put before a text."""
        part = "".join(pieces)
        if len(pieces) > 1 and any(token in part for token in self.added):  # which the tokenizer would recognise
            return [i for piece in pieces for i in self._encode([piece], at)]
        if at == 0 or not self.tokenizer.begins_with_space or self.tokenizer.rules.repeats_space:
            return self.tokenizer.encode(part)
        before, ids = (self.tokenizer.encode(text) for text in (MARKS[0], MARKS[0] + part))
        return ids[len(before) :]

    def _count(self, part: str, at: int, ids: Sequence[int], border: int) -> int:
        """How many of the ids of a part lie before a border in it, where they are as those of the text before it."""
        if border <= 0 or border >= len(part):
            return 0 if border <= 0 else len(ids)
        alone = self._encode([part[:border]], at)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, alone, strict=False)))


def load(directory: Path, tokenizer: Tokenizer) -> Chat | None:
    """How to converse with the model in a directory, by its `chat.json`, or the template in Hugging Face's files; None
    for a base model.

    Args:
        directory: of ours, or a Hugging Face directory.
        tokenizer: the model's own.

    Raises:
        UnsupportedError: a layout that is not known here.
        DataError: a file that is damaged.

    >>> load(Path("nowhere"), Tokenizer.learn("low lower", vocab_size=320)) is None
    True
    """
    return Chat.of(read_layout(directory), tokenizer, directory)


def read_layout(directory: Path) -> dict[str, Any]:
    """The table of `chat.json`, as it is or as it would be for the template in Hugging Face's files.

    Raises:
        DataError: a file that is damaged.
    """
    if (directory / FILE).is_file():
        return read_table(directory / FILE)
    alone = directory / "chat_template.jinja"
    template: Any = read_table(directory / "tokenizer_config.json").get("chat_template")
    template = read_table(directory / "chat_template.json").get("chat_template", template)
    if isinstance(template, list):  # several, of which others are for tools
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    if alone.is_file():
        template = alone.read_text("utf-8", "replace")
    return layout_of(template, named_tokens(directory))


def layout_of(template: str | None, tokens: Mapping[str, str]) -> dict[str, Any]:
    """The table of `chat.json` for a Jinja template, None where there is none.

    >>> layout_of(None, {}), layout_of(CHATML_TEMPLATE, {})
    ({'layout': 'text'}, {'layout': 'chatml'})
    >>> layout_of("{{ bos_token }}", {"bos_token": "<s>"})
    {'layout': 'template', 'template': '{{ bos_token }}', 'bos_token': '<s>'}
    """
    if template in (None, CHATML_TEMPLATE):
        return dict(CONTINUES_TEXT if template is None else CHATML)
    return {"layout": "template", "template": template, **tokens}


def _check(message: Any, number: int) -> None:
    """
    Raises:
        SettingsError: a message that is none.
    """
    match message:
        case {"role": str(role), "content": str(), **rest} if role in ROLES and not rest:
            return
        case {"role": str(role)} if role not in ROLES:
            why = f"has the role {role!r:.40}; known are {', '.join(ROLES)}"
        case {"role": _, "content": str(), **rest} if rest:
            why = f"also has {', '.join(map(repr, rest))}; it should have role and content only"
        case _:
            why = f"is {message!r:.60}; it should have a role and a content, both texts"
    raise SettingsError(f"message {number} {why}")


def _mark(content: str, special: Mapping[str, int], mark: str) -> str:
    """The content with a mark inside each text of a special token, in capitals or small letters."""
    folded = content.casefold()
    present = [text for text in special if text and text.casefold() in folded]
    if not present:
        return content
    begins = "|".join(map(regex.escape, present))
    marked: str = regex.sub(f"(?=(?fi:{begins}))(.)", rf"\1{mark}", content, flags=regex.DOTALL | regex.V1)
    if left := [text for text, i in cut_at(marked, special) if i is not None]:
        raise SettingsError(f"a message holds {left[0]!r}, a special token of this model: leave it out")
    return marked
