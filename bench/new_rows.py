"""How should the rows of new tokens begin? Bits per byte on documents held out, right after a model is extended.

    python bench/new_rows.py runs/storybook [--tokens 64] [--documents 10]

Reads a finished run. New tokens are the words that would save most tokens on validation documents, and two special
tokens that occur nowhere. Each way to begin is measured twice on those documents: cut as before, which shows what the
new rows take away from the old, and cut by the extended tokenizer, which shows what the model makes of tokens that it
was never trained on. For a head of its own, embedding and head are varied apart.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import groundup
from groundup.corpus.document import read_texts
from groundup.evals.score import Score, score
from groundup.model.transformer import Transformer
from groundup.shards import stream_of
from groundup.tokenizer import split
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.extend import extend, names_over_vocabulary

SPECIAL = ("<|tool|>", "<|result|>")
Start = Callable[[Tensor, list[int]], Tensor]
STARTS: dict[str, Start] = {
    "zero": lambda old, pieces: torch.zeros_like(old[0]),
    "random, 0.02": lambda old, pieces: 0.02 * torch.randn_like(old[0]),
    "mean of all": lambda old, pieces: old.mean(0),
    "mean of pieces": lambda old, pieces: old[pieces].mean(0),
    "first piece": lambda old, pieces: old[pieces[0]],
    "last piece": lambda old, pieces: old[pieces[-1]],
}
"""How a row begins: (the old rows, the ids of the token's pieces) → its own."""


def most_useful(texts: list[str], tokenizer: Tokenizer, n: int) -> list[str]:
    """The `n` words that would save most tokens if each were one."""
    counts = Counter(piece for text in texts for piece in split.pre_tokens(text, tokenizer.pattern))
    saved = {piece: count * (len(tokenizer.encode(piece)) - 1) for piece, count in counts.items()}
    return [piece for piece in sorted(saved, key=lambda piece: (-saved[piece], piece))[:n] if saved[piece] > 0]


def measured(model: Transformer, tokenizer: Tokenizer, texts: list[str]) -> Score:
    return score(model, stream_of([(text, len(text.encode())) for text in texts], tokenizer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--documents", type=int)
    options = parser.parse_args()
    model, before = groundup.load(options.run, device="cpu")
    assert before is not None, "a run has a tokenizer"
    held_out = list(read_texts(options.run / "corpus" / "validation.parquet"))[: options.documents]
    words = most_useful(held_out, before, options.tokens)
    print("new tokens:", ", ".join(map(repr, words)))
    with tempfile.TemporaryDirectory() as place:
        extend(options.run, Path(place) / "extended", words, SPECIAL)
        extended, after = groundup.load(Path(place) / "extended", device="cpu")
    assert after is not None, "an extended model has its tokenizer"
    base = measured(model, before, held_out)
    print(f"{'before':52} {base.bits_per_byte:.4f}  {base.tokens:,} tokens")
    as_written = measured(extended, before, held_out), measured(extended, after, held_out)
    print(f"{'as extend writes it':52} {as_written[0].bits_per_byte:.4f} {as_written[1].bits_per_byte:.4f}", end="  ")
    print(f"{as_written[1].tokens:,} tokens, {as_written[1].tokens / base.tokens - 1:+.1%}", flush=True)
    names = names_over_vocabulary(extended.config)
    parameters = dict(extended.named_parameters())
    written = {name: parameters[name].detach().clone() for name in names}
    for embedding in STARTS:
        for head in STARTS if "head.weight" in names else (embedding,):
            if embedding != head and "mean of pieces" not in (embedding, head):
                continue
            torch.manual_seed(0)
            for name in names:
                start, old = STARTS[embedding if name == "embed.weight" else head], written[name][: before.vocab_size]
                with torch.no_grad():
                    parameters[name].copy_(written[name])
                    for number, text in enumerate((*words, *SPECIAL)):
                        parameters[name][before.vocab_size + number] = start(old, before.encode(text))
            told = embedding if head == embedding else f"embedding: {embedding}; head: {head}"
            old_cut, new_cut = measured(extended, before, held_out), measured(extended, after, held_out)
            print(f"{told:52} {old_cut.bits_per_byte:.4f} {new_cut.bits_per_byte:.4f}", flush=True)


if __name__ == "__main__":
    main()
