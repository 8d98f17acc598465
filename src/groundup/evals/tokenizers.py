"""Tokenizers side by side: how short each makes the same texts, by file and by script. Without torch.

All is counted document by document on the same documents, so that a difference can be tested against chance.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from groundup.corpus.script import main_script
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find, read
from groundup.errors import DataError, SettingsError
from groundup.evals.statistics import interval
from groundup.files import Progress, no_progress
from groundup.tokenizer.columns import column_of
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.words import plural

MOST_BYTES = 32_000_000
"""Bytes read of each source: enough for every number here. The rest is left out, and the comparison says so."""
BATCH_BYTES = 2_000_000
"""Bytes encoded by one tokenizer after the other, so that a busy moment of the machine slows all of them."""
UNSPACED = frozenset({"Han", "Japanese", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"})
"""Scripts without spaces between words, where tokens per word say nothing."""
STRANGE = 0.2
"""Share of tokens that are parts of characters, from which on a vocabulary is said not to know a script."""
Comparison = dict[str, Any]
"""What `compare` returns, and the tables inside it: JSON values."""
Counts = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]
_WORD = regex.compile(r"[\p{L}\p{M}]+")


def labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each tokenizer: the last telling part of its path, or whole paths where two would be the same.

    Raises:
        SettingsError: fewer than two, or one twice.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise SettingsError(
            f"there is nothing to compare {paths[0]} with: name two or more different tokenizers before --text, such "
            "as `groundup tokens compare runs/a runs/b --text FILE`"
        )
    plain = {"tokenizer", "model", "tokenizer.json"}
    names = [next((part for part in reversed(path.parts) if part not in plain), str(path)) for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


@dataclass
class _Group:
    """Documents that are counted together."""

    name: str
    kind: str
    """`all`, `source` or `script`."""
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    """Bytes, characters and words of each document; a word is what is between whitespace."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Bytes by script."""
    words: Counter[str] = field(default_factory=Counter)
    """Runs of letters."""
    tokens: list[list[int]] = field(default_factory=list)
    """Tokens of each document by each tokenizer."""
    ids: list[Counts] = field(default_factory=list)
    """For each tokenizer, how often each id occurs."""


def compare(
    tokenizers: Mapping[str, Tokenizer], sources: Sequence[str], progress: Progress = no_progress
) -> Comparison:
    """The comparison as JSON values; lists have an entry for each tokenizer, in their order.

    Args:
        sources: files, folders and packaged corpora, as in a recipe; each is a group. Where the documents are of
            several scripts, each script is a group too.

    Raises:
        SettingsError: no source.
        DataError: one that is missing, or holds nothing that can be read.
    """
    if not sources:
        raise SettingsError("name texts to compare them on: --text FILE, a folder, or groundup:storybook")
    each = list(tokenizers.values())
    groups: dict[tuple[str, str], _Group] = {}
    seconds, same, left_out = [0.0] * len(each), [0] * len(each), Counter[str]()
    cut: list[str] = []
    for batch in _batches(sources, left_out, cut, progress):
        encoded, texts = [], column_of([text for _, text in batch])
        if not groups and texts.nbytes > BATCH_BYTES:
            for tokenizer in each:
                tokenizer.warm_up()  # loading is not timed
        for number, tokenizer in enumerate(each):
            began = time.perf_counter()
            encoded.append(tokenizer.encode_documents(texts))
            seconds[number] += time.perf_counter() - began
        for place, (source, text) in enumerate(batch):
            ids = [every[starts[place] : starts[place + 1]] for every, starts in encoded]
            for number in range(len(each)):
                same[number] += np.array_equal(ids[number], ids[0])
            script = main_script(text)
            for key in (("all", "all texts"), ("source", source), ("script", script)):
                _take(groups.setdefault(key, _Group(key[1], key[0])), text, script, ids, each)
    whole = groups["all", "all texts"]
    chosen = [whole, *_several(groups, "source"), *_several(groups, "script")]
    megabytes = sum(size for size, _, _ in whole.sizes) / 1e6
    return {
        "tokenizers": [
            {"name": name, "vocab_size": tokenizer.vocab_size, "split": tokenizer.pattern}
            for name, tokenizer in tokenizers.items()
        ],
        "groups": [_facts(group, each) for group in chosen],
        "megabytes_per_second": [megabytes / spent for spent in seconds],
        "same_vocabulary": [tokenizer.tokens == each[0].tokens for tokenizer in each],
        "same_ids": [number / len(whole.sizes) for number in same],
        "never_used": [
            np.flatnonzero(counts[: len(tokenizer.tokens)] == 0).tolist()
            for counts, tokenizer in zip(whole.ids, each, strict=True)
        ],
        "left_out": dict(left_out),
        "cut": cut,
    }


def _several(groups: Mapping[tuple[str, str], _Group], kind: str) -> list[_Group]:
    """The groups of a kind, the largest first, if there are several."""
    found = [group for group in groups.values() if group.kind == kind]
    return sorted(found, key=lambda group: -sum(size for size, _, _ in group.sizes)) if len(found) > 1 else []


def _batches(
    sources: Sequence[str], left_out: Counter[str], cut: list[str], progress: Progress
) -> Iterator[list[tuple[str, str]]]:
    """(source, text) of about `BATCH_BYTES` at a time."""
    batch: list[tuple[str, str]] = []
    waiting = 0
    for number, source in enumerate(dict.fromkeys(sources)):
        taken = 0
        for text in _texts(source, left_out):
            if taken >= MOST_BYTES:
                cut.append(source)
                break
            batch.append((source, text))
            size = len(text.encode("utf-8", "replace"))
            taken, waiting = taken + size, waiting + size
            if waiting >= BATCH_BYTES:
                progress(number, len(sources), source)
                yield batch
                batch, waiting = [], 0
        if not taken:
            why = "; ".join(f"{count:,} × {reason.removeprefix(f'{source}: ')}" for reason, count in left_out.items())
            raise DataError(f"{source} has no text to compare on. Left out: {why or 'nothing'}")
    if batch:
        yield batch
    progress(len(sources), len(sources), "")


def _texts(source: str, left_out: Counter[str]) -> Iterator[str]:
    """The texts as they are in the files; those that cannot be read are counted in `left_out`."""
    settings = CorpusSettings(sources=(source,))
    for name, path in find(settings, Path()).files:
        for document in read(name, path, settings):
            if document.reason:
                left_out[f"{source}: {document.reason.split(':')[0].split(';')[0]}"] += 1
            elif document.text.strip():
                yield document.text


def _take(group: _Group, text: str, script: str, ids: Sequence[Ids], tokenizers: Sequence[Tokenizer]) -> None:
    size = len(text.encode("utf-8", "replace"))
    group.sizes.append((size, len(text), len(text.split())))
    group.scripts[script] += size
    group.words.update(_WORD.findall(text))
    group.tokens.append([len(found) for found in ids])
    if not group.ids:
        group.ids = [np.zeros(tokenizer.vocab_size, np.int64) for tokenizer in tokenizers]
    for counts, found in zip(group.ids, ids, strict=True):
        np.add.at(counts, found, 1)


def _facts(group: _Group, tokenizers: Sequence[Tokenizer]) -> Comparison:
    n_bytes, n_characters, n_words = (sum(column) for column in zip(*group.sizes, strict=True))
    unspaced = sum(size for script, size in group.scripts.items() if script in UNSPACED)
    tokens = np.array(group.tokens)  # (documents, tokenizers)
    spaced = unspaced < n_bytes / 2
    facts = []
    for number, tokenizer in enumerate(tokenizers):
        counts, total = group.ids[number], int(tokens[:, number].sum())
        ordinary = len(counts) - len(tokenizer.special)
        facts.append(
            {
                "tokens": total,
                "bytes_per_token": n_bytes / total,
                "characters_per_token": n_characters / total,
                "tokens_per_word": total / n_words if spaced and n_words else None,
                "whole_words": _whole_words(group.words, tokenizer) if spaced and group.words else None,
                "ids_used": int((counts > 0).sum()) / ordinary,
                "parts_of_characters": _parts_of_characters(counts, tokenizer) / total,
                "entropy_bits_per_byte": _entropy_bits(counts) / n_bytes,
                "ratio": total / int(tokens[:, 0].sum()),
                "ratio_interval": interval(tokens[:, number], tokens[:, 0]) if number else None,
            }
        )
    return {
        "name": group.name,
        "kind": group.kind,
        "documents": len(group.sizes),
        "bytes": n_bytes,
        "characters": n_characters,
        "words": n_words,
        "scripts": {script: size / n_bytes for script, size in group.scripts.most_common()},
        "by": facts,
    }


def _whole_words(words: Counter[str], tokenizer: Tokenizer) -> float:
    """Share of the words, as often as they occur, that are one token behind a space."""
    space = "" if tokenizer.begins_with_space else " "
    encoded = tokenizer.encode_batch([f"{space}{word}" for word in words])
    whole = sum(number for ids, number in zip(encoded, words.values(), strict=True) if len(ids) == 1)
    return whole / words.total()


def _parts_of_characters(counts: Counts, tokenizer: Tokenizer) -> int:
    """How many tokens are not whole characters, as where a script is spelled byte by byte."""

    def is_whole(token: bytes) -> bool:
        try:
            return bool(token.decode())
        except UnicodeDecodeError:
            return False

    tokens = tokenizer.tokens
    return sum(int(counts[i]) for i in np.flatnonzero(counts) if not is_whole(tokens[i]))


def _entropy_bits(counts: Counts) -> float:
    """Bits that all tokens together need where each is coded by its own frequency."""
    used = counts[counts > 0].astype(np.float64)
    return float((used * np.log2(used.sum() / used)).sum())


# In words


def verdicts(comparison: Comparison) -> list[str]:
    """The result of the comparison, in sentences."""
    names = [tokenizer["name"] for tokenizer in comparison["tokenizers"]]
    return [
        *(_against_the_first(comparison, number) for number in range(1, len(names))),
        *_strangers(comparison, names),
        *(f"{source}: only the first {MOST_BYTES / 1e6:,.0f} MB were read." for source in comparison["cut"]),
        *(f"left out: {number:,} × {reason}" for reason, number in comparison["left_out"].items()),
    ]


def _against_the_first(comparison: Comparison, number: int) -> str:
    first, second = (comparison["tokenizers"][place]["name"] for place in (0, number))
    if comparison["same_vocabulary"][number]:
        share = comparison["same_ids"][number]
        where = "every document" if share == 1 else f"{share:.1%} of the documents"
        return f"{second} and {first} have the same vocabulary, and give the same ids on {where}."
    whole, *groups = comparison["groups"]
    parts = [f"{second} {_needs(whole, number)} than {first} on {whole['name']}"]
    for kind in ("source", "script"):
        ranked = sorted((group for group in groups if group["kind"] == kind), key=lambda g: g["by"][number]["ratio"])
        ends = [f"{_less_or_more(g['by'][number]['ratio'])} on {g['name']}" for g in (*ranked[:1], *ranked[-1:])]
        parts += [", ".join(ends)] if ends else []
    return "; ".join(parts) + "."


def _needs(group: Comparison, number: int) -> str:
    fact = group["by"][number]
    ends = fact["ratio_interval"]
    if ends is None:
        documents = plural(group["documents"], "document")
        return f"needs {_less_or_more(fact['ratio'])} tokens ({documents}: too few to rule out chance)"
    low, high = ends
    measured = f"95% interval of the ratio {low:.3f} to {high:.3f}"
    if low <= 1 <= high:
        return f"needs as many tokens, as far as these texts can tell ({measured}),"
    return f"needs {_less_or_more(fact['ratio'])} tokens ({measured})"


def _less_or_more(ratio: float) -> str:
    change = abs(ratio - 1)
    if change < 0.0005:
        return "as many"
    return f"{change:{'.1%' if change < 0.0995 else '.0%'}} {'fewer' if ratio < 1 else 'more'}"


def _strangers(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """Scripts that a vocabulary spells in parts of characters."""
    said = []
    for number, name in enumerate(names):
        parts = {
            group["name"]: group["by"][number]["parts_of_characters"]
            for group in comparison["groups"]
            if group["kind"] == "script" and group["by"][number]["parts_of_characters"] >= STRANGE
        }
        if parts:
            worst = max(parts, key=lambda script: parts[script])
            said.append(
                f"{name} hardly knows {', '.join(list(parts)[:6])}{' …' if len(parts) > 6 else ''}: of its tokens "
                f"there {min(parts.values()):.0%} to {parts[worst]:.0%} ({worst}) are parts of characters."
            )
    return said


SHOWN_SCRIPTS = 12
"""Scripts in the table of the terminal; the page and --json have all."""


def group_rows(comparison: Comparison, most: int | None = None) -> list[list[str]]:
    """Bytes per token by group, and the ratio of tokens to those of the first tokenizer."""
    names = [tokenizer["name"] for tokenizer in comparison["tokenizers"]]
    head = ["", "documents", "MB", *(f"{name}: bytes a token" for name in names)]
    head += [f"tokens of {name} for 1 of {names[0]}" for name in names[1:]]
    scripts = [group for group in comparison["groups"] if group["kind"] == "script"]
    left_out = [] if most is None else scripts[most:]
    return [head] + [
        [
            group["name"],
            f"{group['documents']:,}",
            f"{group['bytes'] / 1e6:,.2f}",
            *(f"{fact['bytes_per_token']:.2f}" for fact in group["by"]),
            *(_ratio(fact) for fact in group["by"][1:]),
        ]
        for group in comparison["groups"]
        if group not in left_out
    ]


def _ratio(fact: Comparison) -> str:
    ends = fact["ratio_interval"]
    return f"{fact['ratio']:.3f}" + ("" if ends is None else f" ({ends[0]:.3f} to {ends[1]:.3f})")


def fact_rows(comparison: Comparison, group: int = 0) -> list[list[str]]:
    """Everything that was counted of one group, a line a number."""
    facts = comparison["groups"][group]["by"]
    rows = [
        ["", *(tokenizer["name"] for tokenizer in comparison["tokenizers"])],
        ["ids", *(f"{tokenizer['vocab_size']:,}" for tokenizer in comparison["tokenizers"])],
        *(
            [label, *("–" if fact[key] is None else format(fact[key], form) for fact in facts)]
            for key, (label, form) in LABELS.items()
        ),
    ]
    if group == 0:
        speeds = comparison["megabytes_per_second"]
        rows.append(
            ["speed here, MB/s (of the first's)", *(f"{speed:,.1f} ({speed / speeds[0]:.2f})" for speed in speeds)]
        )
    return rows


LABELS = {
    "tokens": ("tokens", ",d"),
    "bytes_per_token": ("bytes a token", ".3f"),
    "characters_per_token": ("characters a token", ".3f"),
    "tokens_per_word": ("tokens a word", ".3f"),
    "whole_words": ("words that are one token", ".1%"),
    "ids_used": ("ids that occur", ".1%"),
    "parts_of_characters": ("tokens that are parts of characters", ".1%"),
    "entropy_bits_per_byte": ("bits a byte by frequency alone", ".3f"),
}
