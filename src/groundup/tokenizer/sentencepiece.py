"""SentencePiece models, read through the library of that name (Kudo and Richardson 2018, arXiv:1808.06226).

Llama 2's and Mistral's `tokenizer.model` and the like. Ids are the library's own. A blank is the character ▁ in pieces;
most models put one before the text, which decoding takes away again.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.files import naming_the_place, reading
from groundup.tokenizer.tokenizer import Tokenizer, cut_at

BLANK = "▁"
UNKNOWN = " ⁇ "
"""How the library writes a token that stands for what the model does not know."""


class SentencePiece(Tokenizer):
    """A SentencePiece model with the interface of `Tokenizer`, of which it shares no rule.

    What comes back is the text as the model normalises it; models with byte fallback know every character.
    """

    def __init__(self, model: bytes, name: str = "tokenizer.model") -> None:
        """
        Args:
            model: the content of a `.model` file; `name` is for errors.

        Raises:
            UnsupportedError: the library is not there.
            DataError: the model is damaged.
        """
        try:
            import sentencepiece
        except ImportError:
            raise UnsupportedError(
                f"{name} is a SentencePiece model, and its library is not installed: pip install "
                "'groundup[sentencepiece]'"
            ) from None
        self._model = model
        self._library = sentencepiece.SentencePieceProcessor()
        try:
            self._library.LoadFromSerializedProto(model)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{name} is damaged, or no SentencePiece model: {error}") from None
        ids = range(self._library.GetPieceSize())
        self._tokens = [self._bytes_of(i) for i in ids]
        outside = [i for i in ids if self._library.IsControl(i) or self._library.IsUnknown(i)]
        self.special = {self._library.IdToPiece(i): i for i in outside}
        self.added = {}
        self.pattern = "sentencepiece"
        self.normalizer = None
        self.normalized = frozenset()
        self.whole_pieces = False
        self._pairs = []
        self._blank_first = "".join(self._library.EncodeAsPieces("a")).startswith(BLANK)

    def _bytes_of(self, i: int) -> bytes:
        piece: str = self._library.IdToPiece(i)
        if self._library.IsByte(i):
            return bytes([int(piece[3:5], 16)])  # such as <0x0A>
        return (UNKNOWN if self._library.IsUnknown(i) else piece.replace(BLANK, " ")).encode()

    @classmethod
    def read(cls, path: Path) -> Self:
        """
        Raises:
            DataError: missing or damaged, or the library is not there.
        """
        with reading(path) as stream:
            return cls(stream.read(), str(path))

    def extended(self, added: Sequence[str] = (), special: Sequence[str] = ()) -> Self:
        raise UnsupportedError(
            "a SentencePiece model cannot be extended here: its file belongs to its library, which does not change it"
        )

    def first_merges(self, number: int) -> Self:
        raise UnsupportedError("a SentencePiece model has no merges that can be taken back")

    @property
    def is_plain(self) -> bool:
        return False

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._model).hexdigest()

    def encode(self, text: str | bytes, allowed: frozenset[str] = frozenset()) -> list[int]:
        """Text → ids. What is no UTF-8 becomes U+FFFD first; text after an allowed special token begins anew."""
        unknown = allowed - self.special.keys()
        if unknown:
            raise SettingsError(f"not special tokens of this tokenizer: {', '.join(sorted(unknown))}")
        raw = text if isinstance(text, bytes) else text.encode("utf-16", "surrogatepass")
        text = raw.decode("utf-8" if isinstance(text, bytes) else "utf-16", "replace")
        ids: list[int] = []
        for part, i in cut_at(text, {name: self.special[name] for name in allowed}):
            ids += self._library.EncodeAsIds(part) if i is None else [i]
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Ids → the text's bytes, without the blank that the model put before it.

        Raises:
            ValueError: for an id outside the vocabulary.
        """
        raw = super().decode_bytes(ids)
        return raw.removeprefix(b" ") if self._blank_first else raw

    def save(self, path: Path) -> None:
        """Write the model as it was read: `*.model`, in a directory `tokenizer.model`.

        Raises:
            UnsupportedError: any other name.
        """
        path = Path(path) / "tokenizer.model" if Path(path).is_dir() else Path(path)
        if path.suffix != ".model":
            raise UnsupportedError(f"{path} cannot be written: a SentencePiece model stays one, in a file *.model")
        with naming_the_place(path):
            path.write_bytes(self._model)

    def to_hugging_face(self) -> dict[str, Any]:
        """
        Raises:
            UnsupportedError: always; its rules are not those of byte-level BPE.
        """
        raise UnsupportedError("a SentencePiece model cannot be written as the tokenizer.json of a byte-level BPE")
