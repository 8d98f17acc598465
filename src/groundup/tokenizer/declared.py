"""The files beside a tokenizer: which token opens a text, closes it or ends an answer, and which were added later.

Read from tokenizer_config.json, special_tokens_map.json, added_tokens.json, config.json and generation_config.json, as
Hugging Face's library writes them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.errors import DamagedError, DataError
from groundup.files import write_json
from groundup.tokenizer.vocabulary import END_OF_TEXT

OPENERS = (END_OF_TEXT, "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|startoftext|>")
CLOSERS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
"""Names that stand for these where no file says: ours and GPT-2's, Llama 3's, and those of most other vocabularies."""


@dataclass(frozen=True)
class Roles:
    """The ids of a tokenizer that frame a text or end an answer; None or empty where it has no such token."""

    opener: int | None = None
    """The id that opens a text."""
    closer: int | None = None
    """The id that closes it. Where it is also the opener, a text is closed by the opener of the next."""
    stops: frozenset[int] = frozenset()
    """The ids that end an answer."""

    @classmethod
    def of(
        cls,
        special: Mapping[str, int],
        opener: int | None = None,
        closer: int | None = None,
        stops: Iterable[int] = (),
    ) -> "Roles":
        """Roles by the names of the special tokens, where they are not given. An opener serves as the closer, and a
        closer as the opener, where there is no other.

        >>> Roles.of({"<s>": 1, "</s>": 2}), Roles.of({"[EOS]": 0})
        (Roles(opener=1, closer=2, stops=frozenset({2})), Roles(opener=0, closer=0, stops=frozenset({0})))
        """
        opener = _first_of(OPENERS, special) if opener is None else opener
        closer = _first_of(CLOSERS, special) if closer is None else closer
        opener, closer = (closer if opener is None else opener), (opener if closer is None else closer)
        return cls(opener, closer, frozenset(stops) or frozenset(() if closer is None else (closer,)))


def _first_of(names: Iterable[str], special: Mapping[str, int]) -> int | None:
    return next((special[name] for name in names if name in special), None)


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def added_entry(text: str, i: int, **flags: bool) -> dict[str, Any]:
    """A token as `added_tokens` of a tokenizer.json lists it."""
    return {"id": i, "content": text, **dict.fromkeys(FLAGS, False), **flags}


@dataclass(frozen=True)
class Declared:
    """What stands in the files beside a tokenizer."""

    added: tuple[dict[str, Any], ...] = ()
    """Tokens that were added to the vocabulary after it was learned, each an `added_entry`."""
    special: frozenset[str] = frozenset()
    """Texts of tokens that are named in a role, and so are special."""
    opener: tuple[str | int, ...] = ()
    """Candidates, by text or id; the first that exists is the opener."""
    closer: tuple[str | int, ...] = ()
    stops: frozenset[int] = frozenset()
    kind: str = ""
    """The class that reads the tokenizer, in Hugging Face's library."""
    begins_with_space: bool = False
    """Whether a space is put before a text."""

    def roles(self, special: Mapping[str, int], opener: int | None = None, closer: int | None = None) -> Roles:
        """
        Args:
            special: text of each special token → its id.
            opener, closer: those of the tokenizer's own file, which take precedence over config.json.
        """
        ids = set(special.values())

        def first_known(candidates: Iterable[str | int], own: int | None) -> int | None:
            named = [special.get(each) for each in candidates if isinstance(each, str)]
            numbered = [each for each in candidates if isinstance(each, int) and each in ids]
            return next((i for i in (*named, own, *numbered) if i is not None), None)

        return Roles.of(special, first_known(self.opener, opener), first_known(self.closer, closer), self.stops)


NOTHING = Declared()


def read_declared(directory: Path) -> Declared:
    """
    Raises:
        DataError: a file that is damaged, by its name.
    """
    try:
        return _read(directory)
    except (AttributeError, TypeError) as error:
        raise DataError(
            f"tokenizer_config.json or special_tokens_map.json in {directory} is not laid out as Hugging Face's "
            f"library writes it: {error}"
        ) from None


def _read(directory: Path) -> Declared:
    config, named, added, model, generation = (
        read_table(directory / name)
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json",
                     "generation_config.json")
    )  # fmt: skip

    def candidates(role: str) -> tuple[str | int, ...]:
        texts = [text for table in (config, named) if (text := _text(table.get(f"{role}_token")))]
        return *texts, *(i for table in (model, generation) for i in _ids(table.get(f"{role}_token_id")))

    with_a_role = [table[name] for table in (config, named) for name in table if name.endswith("_token")]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        with_a_role += [*(config.get(name) or ()), *(named.get(name) or ())]
    special = frozenset(text for token in with_a_role if (text := _text(token)))
    stops = next((ids for table in (generation, model) if (ids := _ids(table.get("eos_token_id")))), ())
    return Declared(
        added=tuple(_added(directory, config, added, special)),
        special=special,
        opener=candidates("bos"),
        closer=candidates("eos"),
        stops=frozenset(stops),
        kind=str(config.get("tokenizer_class") or "").removesuffix("Fast"),
        begins_with_space=bool(config.get("add_prefix_space")),
    )


def _added(
    directory: Path, config: dict[str, Any], added: dict[str, Any], special: frozenset[str]
) -> Iterable[dict[str, Any]]:
    """The tokens of tokenizer_config.json, which says how each is recognised, then those of added_tokens.json alone."""
    entries: dict[str, dict[str, Any]] = {}
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        text = _text(token)
        if text and str(number).isdigit():
            flags = {name: bool(flag) for name, flag in token.items() if name in FLAGS}
            entries[text] = added_entry(text, int(number), **flags)
    for text, i in added.items():
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise DataError(
                f"{directory / 'added_tokens.json'} gives {text!r} the id {i!r}; it should be a whole number from 0"
            )
        entries.setdefault(text, added_entry(text, i, normalized=text not in special))
    for text in special & entries.keys():
        entries[text]["special"] = True
    return entries.values()


def named_tokens(directory: Path) -> dict[str, str]:
    """The texts of the tokens that the files name by a role, such as `bos_token`.

    Raises:
        DataError: a file that is damaged.
    """
    tables = (read_table(directory / name) for name in ("special_tokens_map.json", "tokenizer_config.json"))
    named = {name: _text(token) for table in tables for name, token in table.items() if name.endswith("_token")}
    return {name: text for name, text in named.items() if text is not None}


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none.

    Raises:
        DataError: damaged, or no object; or it cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if not isinstance(table, dict):
        raise DamagedError(f"{path} is damaged: it holds a JSON {type(table).__name__}, not an object")
    return table


def _text(token: Any) -> str | None:
    """The text of a token that is written as its text or as an object with it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _ids(value: Any) -> tuple[int, ...]:
    several = value if isinstance(value, list) else [value]
    return tuple(i for i in several if isinstance(i, int) and not isinstance(i, bool))


def write_declared(directory: Path, roles: Roles, special: Mapping[str, int]) -> None:
    """Write the roles that neither the names of the special tokens nor the files there tell, as Hugging Face's library
    reads them; whatever else those files hold stays."""
    names = {i: text for text, i in special.items()}
    config, generation = directory / "tokenizer_config.json", directory / "generation_config.json"
    if read_declared(directory).roles(special) != roles:
        named = {"bos_token": names.get(roles.opener or 0), "eos_token": names.get(roles.closer or 0)}
        write_json(config, {**read_table(config), **named})
    if read_declared(directory).roles(special).stops != roles.stops:
        write_json(generation, {**read_table(generation), "eos_token_id": sorted(roles.stops)})
