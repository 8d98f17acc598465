"""What a tokenizer needs of the rules by which text becomes ids; `ByteLevel` and `Library` have it."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from groundup.tokenizer.bpe import Pair
from groundup.tokenizer.explain import PreToken

if TYPE_CHECKING:
    from groundup.tokenizer.fast.encode import Encoder


class Rules(Protocol):
    """A vocabulary, how text is encoded with it, and its file."""

    tokens: list[bytes]
    """The bytes of each id."""
    pairs: list[Pair]
    """The ids that each merge joins, in the order they were learned."""
    special: dict[str, int]
    """Text of each token that is recognised only where it is allowed → its id."""
    added: dict[str, int]
    """Text of each other token that is recognised wherever it stands → its id."""
    pattern: str
    normalizer: str | None
    is_plain: bool
    """Whether text is encoded as it is: nothing is recognised in it or changed before."""
    begins_with_space: bool
    """Whether a text's first token has a space of its own before it, which decoding takes away again."""
    repeats_space: bool
    """Whether each part behind a special token, too, has one."""
    compiled: bool | None
    """Whether the compiled loops are used: always, never, or, if None, by calls that are long enough."""
    suffix: str
    """How the name of its own file ends."""

    def cut(self, text: str | bytes, allowed: Collection[str]) -> Iterator[tuple[str | bytes, int | None]]:
        """The text, normalised, cut around the tokens that are recognised; each part with its id, if it is one."""

    def encode(self, part: str | bytes, encoder: "Encoder | None" = None) -> list[int]:
        """The ids of a part that holds no recognised token.

        Args:
            encoder: the compiled loops, for parts that are long enough to call them.
        """

    def encoder(self, size: int) -> "Encoder | None":
        """The compiled loops, if a call that encodes `size` characters should use them."""

    def explain(self, text: str | bytes, allowed: Collection[str]) -> Iterator[PreToken]:
        """The pre-tokens of a text, each with its ids and merges."""

    def extended(self, added: Sequence[str], special: Sequence[str]) -> "Rules":
        """These rules with more tokens, their ids after the last."""

    def spelled(self, i: int) -> str:
        """The token of id `i` as the file spells it."""

    def content(self) -> bytes:
        """Everything that decides the ids of a text."""

    def to_hugging_face(self) -> dict[str, Any]:
        """The content of a `tokenizer.json`."""

    def write(self, path: Path) -> None:
        """Write its own file."""
