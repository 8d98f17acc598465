"""Tokenizers that are read through a library: SentencePiece models, and a tokenizer.json that is not byte-level BPE.

SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226) by the library of that name, as Llama 2's and Gemma's
`tokenizer.model`; the same vocabularies in a tokenizer.json by Hugging Face's tokenizers. Ids are the library's own. A
space is the character ▁ in their pieces; most put one before the text, which decoding takes away again.
"""

import json
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.errors import DataError, UnsupportedError
from groundup.files import reading
from groundup.tokenizer.bpe import Pair
from groundup.tokenizer.byte_level import cut_at
from groundup.tokenizer.declared import Declared, Roles
from groundup.tokenizer.explain import PreToken
from groundup.tokenizer.hugging_face import framing, special_and_added, steps_of, with_added
from groundup.tokenizer.vocabulary import CHARACTER_BYTES, to_bytes

SPACE = "▁"
UNKNOWN = " ⁇ ".encode()
"""How SentencePiece writes a token that stands for what the model does not know."""


class Library:
    """The rules of a library's tokenizer: text goes in, ids come out, and how is not known here.

    What comes back is the text as the library normalises it; models with byte fallback know every character.
    """

    pairs: list[Pair] = []
    normalizer: str | None = None
    is_plain = False
    compiled: bool | None = None

    def __init__(
        self,
        content: bytes,
        suffix: str,
        pieces: Sequence[str],
        tokens: Sequence[bytes],
        encode: Callable[[str], list[int]],
        special: Mapping[str, int],
        added: Mapping[str, int],
        repeats_space: bool = False,
    ) -> None:
        """
        Args:
            content: of its file, whose name ends in `suffix`.
            pieces: each id as the file spells it.
            tokens: the bytes of each id.
            encode: text → ids; the texts of special tokens are ordinary text.
            added: tokens that the library itself recognises, or that `encode` refuses.
        """
        self.suffix, self.tokens, self.special, self.added = suffix, list(tokens), dict(special), dict(added)
        self.pattern = "sentencepiece" if suffix == ".model" else "tokenizers"
        self.begins_with_space = self.tokens[encode("a")[0]].startswith(b" ")
        self.repeats_space = repeats_space
        self._content, self._pieces, self._encode = content, list(pieces), encode

    def cut(self, text: str | bytes, allowed: Collection[str]) -> Iterator[tuple[str, int | None]]:
        """The text cut around allowed special tokens; what is no UTF-8 becomes U+FFFD first."""
        raw = text if isinstance(text, bytes) else text.encode("utf-16", "surrogatepass")
        whole = raw.decode("utf-8" if isinstance(text, bytes) else "utf-16", "replace")
        yield from cut_at(whole, {name: self.special[name] for name in allowed})

    def encode(self, part: str | bytes, encoder: object = None) -> list[int]:
        """The ids of a part of a text, which begins anew after a special token."""
        return self._encode(str(part))

    def encoder(self, size: int) -> None:
        """None, always: the library is compiled already."""

    def explain(self, text: str | bytes, allowed: Collection[str]) -> Iterator[PreToken]:
        """Each token as a pre-token of its own."""
        for part, i in self.cut(text, allowed):
            for number, token in enumerate(self._encode(part) if i is None else [i]):
                raw = self.tokens[token].removeprefix(b" " if self.begins_with_space and number == 0 else b"")
                yield PreToken(raw, (token,), "library" if i is None else "special", None)

    def extended(self, added: Sequence[str], special: Sequence[str]) -> "Library":
        """
        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"a tokenizer of {self.pattern} cannot be extended here: its file belongs to that library, whose rules are "
            "not those of byte-level BPE"
        )

    def spelled(self, i: int) -> str:
        return self._pieces[i]

    def content(self) -> bytes:
        return self._content

    def sentencepieces(self) -> list[tuple[str, float, int]]:
        """Of a SentencePiece model text, score and kind of each token, as `sentencepiece_model` takes them."""
        library, special = _sentencepiece(self._content, "the tokenizer"), self.special.values()
        tests = {2: library.IsUnknown, 3: library.IsControl, 5: library.IsUnused, 6: library.IsByte}
        pieces = []
        for i, piece in enumerate(self._pieces):
            own = i < library.GetPieceSize()
            kind = next(
                (kind for kind, test in tests.items() if own and test(i)), 1 if own else 3 if i in special else 4
            )
            pieces.append((piece, library.GetScore(i) if own else 0.0, kind))
        return pieces

    def write(self, path: Path) -> None:
        """Write the file as it was read."""
        path.write_bytes(self._content)

    def to_hugging_face(self) -> dict[str, Any]:
        """
        Raises:
            UnsupportedError: of a SentencePiece model; its rules are not those of byte-level BPE.
        """
        if self.suffix == ".model":
            raise UnsupportedError("a SentencePiece model cannot be written as the tokenizer.json of a byte-level BPE")
        table: dict[str, Any] = json.loads(self._content)
        return table


def _bytes_of(piece: str, is_byte: bool) -> bytes:
    """What a piece stands for; a single byte is written such as <0x0A>."""
    return bytes.fromhex(piece[3:5]) if is_byte else piece.replace(SPACE, " ").encode()


def read_sentencepiece(path: Path, declared: Declared) -> tuple[Library, Roles]:
    """
    Raises:
        DataError: missing or damaged.
        UnsupportedError: the library is not there.
    """
    with reading(path) as stream:
        return sentencepiece_rules(stream.read(), str(path), declared)


def sentencepiece_rules(model: bytes, origin: str, declared: Declared) -> tuple[Library, Roles]:
    """
    Args:
        model: the content of a SentencePiece model.
        origin: where it comes from, for errors, which are those of `read_sentencepiece`.
    """
    library = _sentencepiece(model, origin)
    pieces = [library.IdToPiece(i) for i in range(library.GetPieceSize())]
    tokens = [_bytes_of(piece, library.IsByte(i)) for i, piece in enumerate(pieces)]
    tokens[library.unk_id()] = UNKNOWN
    special = {piece: i for i, piece in enumerate(pieces) if library.IsControl(i) or library.IsUnknown(i)}
    recognised: dict[str, int] = {}
    for token in sorted(declared.added, key=lambda token: token["id"]):
        text, i = token["content"], token["id"]
        if text in pieces:
            continue
        if i != len(pieces):
            raise UnsupportedError(
                f"the files beside {origin} add {text!r} with id {i:,} to its {len(pieces):,} pieces; it should have "
                f"id {len(pieces):,}"
            )
        pieces.append(text)
        tokens.append(text.encode())
        (special if token["special"] else recognised)[text] = i

    def encode(text: str) -> list[int]:
        if present := [token for token in recognised if token in text]:
            raise UnsupportedError(
                f"the text holds {present[0]!r}, which the files beside {origin} add to its pieces; how the text "
                "around it is cut is not represented here. A tokenizer.json instead of it says so"
            )
        ids: list[int] = library.EncodeAsIds(text)
        return ids

    own = (i if i >= 0 else None for i in (library.bos_id(), library.eos_id()))
    return Library(model, ".model", pieces, tokens, encode, special, recognised), declared.roles(special, *own)


def _sentencepiece(model: bytes, origin: str) -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise UnsupportedError(
            f"{origin} is a SentencePiece model, and its library is missing: pip install 'groundup[sentencepiece]'"
        ) from None
    library = sentencepiece.SentencePieceProcessor()
    try:
        library.LoadFromSerializedProto(model)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{origin} is damaged, or no SentencePiece model: {error}") from None
    return library


def sentencepiece_model(
    pieces: Sequence[tuple[str, float, int]], space_first: bool = True, no_double_spaces: bool = False
) -> bytes:
    """The content of a SentencePiece model that merges by score, as its protobuf lays it out.

    Args:
        pieces: text, score and kind of each, the kind as SentencePiece numbers them: 1 normal, 2 unknown, 3 control, 4
            user-defined, 5 unused, 6 a byte.
        space_first: whether a space is put before a text.
        no_double_spaces: whether spaces are made one, and taken away at the ends.
    """
    merges, bytes_known = _field(3, 2), _field(35, any(kind == 6 for _, _, kind in pieces))
    control = [text for text, _, kind in pieces if kind == 3]
    names = {
        45: [text for text, _, kind in pieces if kind == 2],
        46: control,
        47: control[1:],
    }  # unknown, opener, closer
    trainer = (
        merges + bytes_known + b"".join(_field(number, texts[0].encode()) for number, texts in names.items() if texts)
    )
    normalizer = _field(1, b"identity") + _field(3, space_first) + _field(4, no_double_spaces) + _field(5, True)
    each = [
        _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _field(3, kind) for text, score, kind in pieces
    ]
    return b"".join(_field(1, piece) for piece in each) + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: bytes | int) -> bytes:
    """A field of a protobuf."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(int(value))


def _varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + _varint(value >> 7) if value > 127 else bytes([value])


def read_hugging_face(path: Path, declared: Declared, why: UnsupportedError) -> tuple[Library, Roles]:
    """A tokenizer.json that is not represented here, for the reason `why`.

    Raises:
        UnsupportedError: a kind whose tokens do not add up to the text, or the library is not there.
        DataError: the library refuses it.
    """
    with reading(path) as stream:
        return hugging_face_rules(with_added(json.loads(stream.read()), declared), declared, str(path), why)


def hugging_face_rules(
    file: dict[str, Any], declared: Declared, origin: str, why: UnsupportedError
) -> tuple[Library, Roles]:
    """
    Args:
        file: a tokenizer.json, `with_added`.
        origin: where it comes from, for errors, which are those of `read_hugging_face`.
    """
    try:
        import tokenizers
    except ImportError:
        raise UnsupportedError(
            f"{why}. Hugging Face's library reads it, and is not installed: pip install 'groundup[tokenizers]'"
        ) from None
    text = json.dumps(file, ensure_ascii=False)
    kinds = {step.get("type") for step in steps_of(file.get("decoder"), "decoders")}
    if not kinds & {"ByteLevel", "ByteFallback", "Metaspace"} or file["model"].get("type") not in ("BPE", "Unigram"):
        raise why
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower one
        raise DataError(f"{origin} is not a tokenizer that its library reads: {error}") from None
    library.encode_special_tokens = True
    vocabulary: dict[str, int] = library.get_vocab(with_added_tokens=True)
    pieces = [""] * (max(vocabulary.values()) + 1)
    for piece, i in vocabulary.items():
        pieces[i] = piece
    if gaps := len(pieces) - len({*vocabulary.values()}):
        raise UnsupportedError(f"{origin}: its ids have gaps: {gaps:,} of {len(pieces):,} ids stand for nothing")
    special, added = special_and_added(file)
    unknown = file["model"].get("unk_token")
    if unknown in vocabulary and unknown not in added:
        special[unknown] = vocabulary[unknown]
    has_bytes = bool(file["model"].get("byte_fallback"))

    def bytes_of(piece: str) -> bytes:
        if piece in special or piece in added:
            return piece.encode()
        if "ByteLevel" in kinds and set(piece) <= CHARACTER_BYTES.keys():
            return to_bytes(piece)
        return _bytes_of(piece, has_bytes and len(piece) == 6 and piece.startswith("<0x"))

    def encode(text: str) -> list[int]:
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    before = [*steps_of(file.get("normalizer"), "normalizers"), *steps_of(file.get("pre_tokenizer"), "pretokenizers")]
    repeats = any(step.get("prepend_scheme") == "always" or step["type"] == "Prepend" for step in before)
    rules = Library(text.encode(), ".json", pieces, [*map(bytes_of, pieces)], encode, special, added, repeats)
    return rules, declared.roles(special, *framing(file, special))
