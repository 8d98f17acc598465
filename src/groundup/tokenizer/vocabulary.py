"""What every vocabulary has: the 256 bytes, as GPT-2 orders and writes them, and the names of special tokens."""

import codecs
from collections.abc import Iterable, Iterator

from groundup.tokenizer.settings import MULTIPLE, N_BYTES, N_SPECIAL

END_OF_TEXT = "<|endoftext|>"
NAMED_SPECIAL = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte (bytes_to_unicode in its encoder.py), in the order of its ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(N_BYTES + i) for i, byte in enumerate(others)}


BYTE_CHARACTERS = _byte_characters()
CHARACTER_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}


def byte_ids() -> list[int]:
    """(256,) the id of each byte in a vocabulary that is learned here: its position in GPT-2's table."""
    ids = {byte: i for i, byte in enumerate(BYTE_CHARACTERS)}
    return [ids[byte] for byte in range(N_BYTES)]


def special_after(n_tokens: int) -> dict[str, int]:
    """The named special tokens and as many reserved ones as make the whole a multiple of 64, with their ids."""
    n_special = N_SPECIAL + -(n_tokens + N_SPECIAL) % MULTIPLE
    names = [*NAMED_SPECIAL, *(f"<|reserved_{i}|>" for i in range(n_special - len(NAMED_SPECIAL)))]
    return {name: n_tokens + i for i, name in enumerate(names)}


def to_characters(token: bytes) -> str:
    """A token as GPT-2's files write it: one printable character a byte."""
    return "".join(BYTE_CHARACTERS[byte] for byte in token)


def to_bytes(characters: str) -> bytes:
    """The token that these characters stand for; KeyError for a character that stands for no byte."""
    return bytes(CHARACTER_BYTES[character] for character in characters)


def to_utf8(text: str) -> bytes:
    """UTF-8; a lone surrogate, which no UTF-8 can hold, becomes U+FFFD as in tiktoken."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def readable(token: bytes) -> str:
    r"""A token for a person's eyes: its text, but control characters and bytes that are not UTF-8 as escapes.

    >>> readable(b" caf\xc3\xa9\n"), readable(b"\xc3")
    (' café\\n', '\\xc3')
    """
    text = token.decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def without_first_space(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The first text that is not empty loses the space that it begins with.

    >>> list(without_first_space([b"", b" a", b" b"]))
    [b'', b'a', b' b']
    """
    begun = False
    for part in parts:
        yield part if begun else part.removeprefix(b" ")
        begun = begun or bool(part)


def whole_characters(parts: Iterable[bytes]) -> Iterator[str]:
    """Text as soon as its UTF-8 is complete; what never completes becomes U+FFFD.

    >>> list(whole_characters([b"caf", "é".encode()[:1], "é".encode()[1:], b"!"]))
    ['caf', 'é', '!']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in parts:
        if text := decoder.decode(part):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
