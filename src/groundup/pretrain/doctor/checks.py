"""The doctor's checks. Each looks at what it is handed, a model, rows, an optimizer, and says what it saw.

B batch, T time, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from groundup.batch import Batch, to
from groundup.corpus.refine import told_marks
from groundup.errors import GroundupError
from groundup.model.feedforward import GatedFeedForward, PlainFeedForward
from groundup.model.presets import PRESETS
from groundup.model.settings import Experts, LanguageModel, ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.settings import AdamW
from groundup.plan.laws import MOST_PASSES
from groundup.pretrain.settings import PretrainSettings
from groundup.shards import Tokens, refuse_another_tokenizer
from groundup.tokenizer.settings import N_BYTES
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.losses import Loss

Verdict = Literal["ok", "take care", "stop"]
Rows = Callable[[int, int], Batch]
"""`rows(first, count)`: that many rows of the shuffled sequence, as training draws them."""
SETTINGS, DATA, MEMORY, LEARNING = 2, 3, 4, 5
"""Exit codes of what must stop a run: settings that cannot work, wrong data, too small a machine, wrong learning."""
WINDOW = 16
"""Tokens of a passage that two documents share. At 16 the shipped corpora share none in 10,000 by chance; at 8, two in
100 (docs/log.md)."""
COPIED = 0.2
"""Share of a document's passages from which on it counts as a copy."""
BLOCK = 1 << 22
"""Tokens that are compared at once."""
NEAR_CHANCE = 0.95
"""A trained model's loss above this share of ln V says that it knows nothing of these ids."""


@dataclass(frozen=True)
class Line:
    """What was checked, what was seen, and what to do about it."""

    checked: str
    seen: str
    verdict: Verdict = "ok"
    advice: str = ""
    exit_code: int = 0
    """Of the command, where the verdict is `stop`."""
    group: str = ""


def judged(checked: str, seen: str, stop: int, advice: str) -> Line:
    """A line that stops with this exit code."""
    return Line(checked, seen, "stop", advice, stop)


# --- settings ---


def check_learning_rate(config: ModelConfig, settings: PretrainSettings) -> Line:
    """Against the line through the published rates over the published sizes (`model/presets.py`)."""
    rate = settings.optimizer.learning_rate
    if not isinstance(settings.optimizer, AdamW):
        return Line("learning rate", f"{rate:.3g}; published rates are AdamW's: not compared")
    published = [(each.model.parameters, each.learning_rate) for each in PRESETS.values() if each.learning_rate]
    sizes, rates = np.log(np.array(published)).T
    slope, level = np.polyfit(sizes, rates, 1)
    usual = math.exp(level + slope * math.log(config.parameters))
    seen = f"{rate:.3g}; for {config.parameters:,} parameters published models suggest about {usual:.1g}"
    lowest = usual / 30 if settings.start is None else 0.0  # what is learned already may be changed as little as wanted
    if not lowest <= rate <= usual * 8:
        times = f"{rate / usual:,.0f} times too high" if rate > usual else f"{usual / rate:,.0f} times too low"
        return Line("learning rate", seen, "take care", f"{times}: set pretrain.optimizer.learning_rate={usual:.1g}")
    return Line("learning rate", seen)


def check_optimizer_settings(settings: PretrainSettings) -> Line:
    optimizer = settings.optimizer
    if not isinstance(optimizer, AdamW):
        return Line("optimizer", f"{optimizer.kind}")
    seen = f"betas {optimizer.beta1:g} and {optimizer.beta2:g}, weight decay {optimizer.weight_decay:g}"
    usual = {
        "beta1": (optimizer.beta1, 0.8, 0.98, 0.9),
        "beta2": (optimizer.beta2, 0.9, 0.9995, 0.95),
        "weight_decay": (optimizer.weight_decay, 0.0, 0.5, 0.1),
        "epsilon": (optimizer.epsilon, 1e-20, 1e-5, 1e-8),
    }
    odd = [f"pretrain.optimizer.{name}={best:g}" for name, (value, low, high, best) in usual.items()
           if not low <= value <= high]  # fmt: skip
    if odd:
        return Line("optimizer", seen, "take care", f"published trainings have about {', '.join(odd)}")
    return Line("optimizer", seen)


def check_length(config: ModelConfig, settings: PretrainSettings, train_tokens: int) -> Line:
    """Tokens for each parameter, and how often the text is read."""
    tokens = settings.steps * settings.batch_tokens
    each, passes = tokens / config.parameters, tokens / max(1, train_tokens)
    seen = f"{tokens:,} tokens: {each:.2g} for each parameter, the text {passes:.2g} times"
    if passes > 2 * MOST_PASSES:
        fewer = _fewer_steps(settings, int(settings.steps * MOST_PASSES / passes))
        return Line("length", seen, "take care", f"after {MOST_PASSES} it is learned by heart: more text{fewer}")
    if each < 0.1 and settings.start is None:
        return Line("length", seen, "take care", "a smaller model would learn more from so little")
    return Line("length", seen)


def _fewer_steps(settings: PretrainSettings, steps: int) -> str:
    """The settings that make a training so long, with what then no longer fits; nothing where it cannot be shorter."""
    if steps < 1:
        return ""
    shorter = [f"pretrain.steps={steps}"]
    for name, share in (("warmup_steps", 10), ("decay_steps", 5)):
        if (getattr(settings.schedule, name, None) or 0) > steps // share:
            shorter.append(f"pretrain.schedule.{name}={steps // share}")
    return f", or fewer steps ({' '.join(shorter)})"


def check_warmup(settings: PretrainSettings) -> Line:
    steps = settings.schedule.warmup_steps
    if steps is None:
        return Line("warm-up", f"chosen by itself, of {settings.steps:,} steps")
    seen = f"{steps:,} of {settings.steps:,} steps"
    if steps > 0.3 * settings.steps:
        better = settings.steps // 10
        return Line("warm-up", seen, "take care", f"most of it is warm-up: pretrain.schedule.warmup_steps={better}")
    room = settings.steps - (getattr(settings.schedule, "decay_steps", None) or 0)
    if steps == 0 and settings.steps > 100 and room:
        better = min(50, room)
        return Line("warm-up", seen, "take care", f"the first steps are wild: pretrain.schedule.warmup_steps={better}")
    return Line("warm-up", seen)


# --- text ---


def check_round_trip(tokenizer: Tokenizer, texts: Sequence[str]) -> Line:
    """decode(encode(text)) is the text."""
    encoded = [tokenizer.encode(text) for text in texts]
    lost = [text for text, ids in zip(texts, encoded, strict=True) if tokenizer.decode(ids) != text]
    n_bytes, n_ids = sum(len(text.encode()) for text in texts), sum(map(len, encoded))
    seen = f"{len(texts) - len(lost)} of {len(texts)} texts come back, {n_bytes / max(1, n_ids):.2f} bytes a token"
    if lost:
        return judged("tokenizer", f"{seen}; not {lost[0][:40]!r}", SETTINGS,
                      "the model cannot write what it reads: take another tokenizer")  # fmt: skip
    return Line("tokenizer", seen)


def check_separators(marks: Mapping[str, Any]) -> Line:
    """What the corpus counted of the marks that tools put between texts (`corpus.refine.Marks`)."""
    told = list(told_marks(marks))
    if not told:
        return Line("separators", "no mark such as <|endoftext|> stands in the texts")
    return Line("separators", "; ".join(seen for seen, _ in told), "take care", told[0][1])


def count_ids(splits: Iterable[Tokens], vocab_size: int) -> npt.NDArray[np.int64]:
    """How often each id occurs."""
    counts = np.zeros(vocab_size, np.int64)
    for tokens in splits:
        for first in range(0, len(tokens.ids), BLOCK):
            counts += np.bincount(tokens.ids[first : first + BLOCK], minlength=vocab_size)
    return counts


def check_vocabulary(counts: npt.NDArray[np.int64], tokenizer: Tokenizer, may_learn: bool) -> Line:
    """Ids that no text has; special ones, which none should have, are not counted.

    Args:
        counts: how often each id occurs.
        may_learn: whether another tokenizer could be learned: this one was not, and no trained model needs it.
    """
    special = set(tokenizer.special.values())
    unused = [i for i in np.flatnonzero(counts == 0).tolist() if i not in special]
    tokens = tokenizer.tokens
    n_bytes = sum(len(tokens[i]) == 1 for i in unused)
    n_pieces, pieces = len(unused) - n_bytes, len(tokens) - N_BYTES - len(special)
    seen = f"of {len(tokens):,} ids {len(unused):,} never occur"
    if n_bytes:
        seen += f": {f'{n_bytes:,} are ' * (n_pieces > 0)}bytes that these texts do not have"
    if may_learn and n_pieces > pieces / 2:
        return Line("vocabulary", seen, "take care", "rows of the others cost memory: learn a tokenizer on these texts "
                    'with tokenizer.kind = "learned" in place of "existing"')  # fmt: skip
    return Line("vocabulary", seen)


def check_shards(shards: Path, train: Tokens, tokenizer: Tokenizer, recorded: str | None, texts: Iterable[str]) -> Line:
    """The ids are this tokenizer's ids of these texts.

    Args:
        recorded: digest of the tokenizer's directory, if it has one.
        texts: the first training documents, in order.
    """
    try:
        refuse_another_tokenizer(shards, recorded, "the run's tokenizer")
    except GroundupError as error:
        return judged("shards", str(error), error.exit_code, "")
    number = 0
    for number, text in enumerate(texts, start=1):
        ids = np.asarray(train.ids[train.offsets[number - 1] : train.offsets[number]]).tolist()
        if ids != tokenizer.framed(tokenizer.encode(text)):
            return judged("shards", f"document {number} is packed as other ids than this tokenizer gives", SETTINGS,
                          f"remove {shards}: it is then packed again")  # fmt: skip
    return Line("shards", f"{number} documents packed as this tokenizer encodes them")


def check_held_out(train: Tokens, held: Mapping[str, Tokens], most_tokens: int) -> Line:
    """Validation and test documents that stand in training: word for word, or in passages of `WINDOW` tokens.

    Where training documents repeat each other as much, the text is repetitive and nothing leaked.

    Args:
        most_tokens: how much of the training text is looked at.
    """
    last = int(np.searchsorted(train.offsets, most_tokens, side="right")) - 1
    looked = Tokens(train.ids[: train.offsets[max(1, last)] + 1], train.offsets[: max(1, last) + 1], train.n_bytes)
    wholes = {name: _whole_documents(tokens) for name, tokens in held.items()}
    exact = {name: np.isin(whole, _whole_documents(looked)) for name, whole in wholes.items()}
    passages = {name: _passages(np.asarray(tokens.ids)) for name, tokens in held.items()}
    wanted = np.unique(np.concatenate([*passages.values(), np.zeros(0, np.uint64)]))
    found = np.zeros(len(wanted), bool)
    for first in range(0, len(looked.ids), BLOCK):
        block = _passages(np.asarray(looked.ids[first : first + BLOCK + WINDOW - 1]))
        place = np.searchsorted(wanted, block)
        hit = wanted[np.minimum(place, len(wanted) - 1)] == block if len(wanted) else np.zeros(0, bool)
        found[place[hit]] = True
    among = {name: _shares(found[np.searchsorted(wanted, passage)], held[name]) for name, passage in passages.items()}
    n = sum(map(len, among.values()))
    copies = {name: int(((share >= COPIED) | exact[name]).sum()) for name, share in among.items()}
    whole = {name: int(is_there.sum()) for name, is_there in exact.items()}
    shared = float(np.mean(np.concatenate([*among.values(), np.zeros(1)])))
    part = "" if last >= train.n_documents else f" (first {len(looked.ids):,} tokens of it)"
    told = ", ".join(f"{count} of {len(among[name])} {name}" for name, count in copies.items())
    seen = f"{told} documents stand in training{part}; {shared:.2%} of their passages do"
    advice = "scores would be too good: leave one of the two out of the sources"
    if sum(whole.values()):
        seen = ", ".join(f"{count} of {len(exact[name])} {name}" for name, count in whole.items())
        return judged("held-out text", f"{seen} documents stand in training word for word{part}", DATA, advice)
    if sum(copies.values()):
        repetitive = _repetition(looked)
        if repetitive >= 0.5 * sum(copies.values()) / n:
            seen += f"; but {repetitive:.0%} of training documents repeat each other too"
            return Line("held-out text", seen, "take care", "the texts are repetitive: scores will say little")
        if sum(copies.values()) / n > 0.05:
            return judged("held-out text", f"{seen}, nearly as they are", DATA, advice)
        return Line("held-out text", seen, "take care", advice)
    return Line("held-out text", seen)


def _passages(ids: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """A number for each passage of `WINDOW` ids: the same for the same ids. Doubled until it is long enough."""
    numbers = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    numbers ^= numbers >> np.uint64(32)
    length, factor = 1, 0xD6E8FEB86659FD93
    while length < WINDOW:
        n = max(0, len(numbers) - length)
        numbers = numbers[:n] * np.uint64(factor) + numbers[length : length + n]
        length, factor = 2 * length, factor * factor % (1 << 64)
    return numbers


def _whole_documents(tokens: Tokens) -> npt.NDArray[np.uint64]:
    """A number for each document: the same for the same ids."""
    if not tokens.n_documents or len(tokens.offsets) < 2:
        return np.zeros(0, np.uint64)
    ids = np.asarray(tokens.ids[: tokens.offsets[-1]]).astype(np.uint64)
    within = np.arange(len(ids)) - np.repeat(tokens.offsets[:-1], np.diff(tokens.offsets))
    numbers = ((within.astype(np.uint64) << np.uint64(32)) + ids) * np.uint64(0x9E3779B97F4A7C15)
    numbers ^= numbers >> np.uint64(29)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(32)
    summed: npt.NDArray[np.uint64] = np.add.reduceat(numbers, tokens.offsets[:-1])
    return summed


def _shares(found: npt.NDArray[np.bool_], tokens: Tokens) -> npt.NDArray[np.float64]:
    """Of each document, the share of its passages that were found."""
    summed = np.concatenate([np.zeros(1), np.cumsum(found)])
    first = tokens.offsets[:-1]
    last = np.clip(tokens.offsets[1:] - WINDOW + 1, first, max(0, len(found)))
    n: npt.NDArray[np.int64] = last - first
    shares: npt.NDArray[np.float64] = (summed[last] - summed[np.minimum(first, last)]) / np.maximum(1, n)
    return shares


def _repetition(train: Tokens) -> float:
    """Share of the (first) training documents that stand in others, by the same measure."""
    last = max(1, int(np.searchsorted(train.offsets, BLOCK, side="right")) - 1)
    some = Tokens(train.ids[: train.offsets[last] + 1], train.offsets[: last + 1], train.n_bytes[:last])
    passages = _passages(np.asarray(some.ids))
    distinct, times = np.unique(passages, return_counts=True)
    return float(np.mean(_shares(times[np.searchsorted(distinct, passages)] > 1, some) >= COPIED))


def check_order(rows: Rows, train: Tokens, context_length: int, most: int = 256) -> Line:
    """Rows come in shuffled order, each once an epoch, and in another order in the next one."""
    n = train.n_rows(context_length)
    if n < 16:
        return Line("order of rows", f"only {n} rows: too few to tell")
    find = _finder(train, context_length)
    m = min(most, n)
    spread = np.linspace(0, n - 1, m).astype(int)
    begun, again = find(rows(0, m)), find(rows(n, m))
    whole = np.concatenate([find(rows(int(number), 1)) for number in spread])
    told = f"{m} rows of {n:,}"
    advice = "rows must come in the order of a seeded permutation, a new one each epoch (loader.rows)"
    known = (begun[1:] >= 0) & (begun[:-1] >= 0)
    near = np.abs(np.diff(begun))[known] <= 2
    if known.sum() >= 8 and near.mean() > max(0.3, 16 / n):
        return judged("order of rows", f"{told}: {near.mean():.0%} stand beside the one before: not shuffled",
                      LEARNING, advice)  # fmt: skip
    placed = whole >= 0
    if placed.sum() >= 8:
        order = np.corrcoef(whole[placed].argsort().argsort(), np.arange(placed.sum()))[0, 1]
        if abs(order) > min(0.9, 5 / math.sqrt(placed.sum()) + 0.1):
            return judged("order of rows", f"{told}: they come nearly in the order of the text (correlation "
                          f"{order:.2f}): not shuffled, or within a small buffer only", LEARNING, advice)  # fmt: skip
    both = (begun >= 0) & (again >= 0)
    if both.sum() >= 8 and (begun == again)[both].mean() > 0.3:
        return judged("order of rows", f"{told}: the second epoch has the order of the first: not shuffled again",
                      LEARNING, advice)  # fmt: skip
    seen_once = begun[begun >= 0]
    if len(seen_once) - len(np.unique(seen_once)) > 0.05 * len(seen_once):
        return judged("order of rows", f"{told}: some come twice within an epoch", LEARNING, advice)
    return Line("order of rows", f"{told}: shuffled, and in another order in the second epoch")


def _finder(train: Tokens, context_length: int) -> Callable[[Batch], npt.NDArray[np.int64]]:
    """From a batch to each row's number in the text; −1 for a row whose beginning occurs more than once."""
    n, width = train.n_rows(context_length), min(16, context_length)
    starts = np.arange(n) * context_length
    place = np.minimum(starts[:, None] + np.arange(width), len(train.ids) - 1)
    document = np.searchsorted(train.offsets, starts, side="right") - 1

    def numbers_of(ids: npt.NDArray[Any], documents: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        mixed = np.concatenate([documents[:, None], ids], axis=1).astype(np.uint64)
        factors = np.random.default_rng(0).integers(1, 1 << 62, mixed.shape[1]).astype(np.uint64) * np.uint64(2)
        summed: npt.NDArray[np.uint64] = ((mixed + np.uint64(1)) * (factors + np.uint64(1))).sum(axis=1)
        return summed

    distinct, index, times = np.unique(numbers_of(train.ids[place], document), return_index=True, return_counts=True)

    def find(batch: Batch) -> npt.NDArray[np.int64]:
        wanted = numbers_of(batch.tokens[:, :width].numpy(), batch.document[:, 0].numpy())
        where = np.minimum(np.searchsorted(distinct, wanted), len(distinct) - 1)
        return np.where((distinct[where] == wanted) & (times[where] == 1), index[where], -1)

    return find


# --- the model and its loss ---


def fewer(batch: Batch, tokens: int) -> Batch:
    """The first rows of a batch, or the beginning of its first, with about so many tokens."""
    length = batch.tokens.shape[1]
    rows = max(1, tokens // length)
    cut = {name: tensor[:rows, : max(16, tokens)] for name, tensor in vars(batch).items()}
    return Batch(**cut)


def with_borders(batch: Batch) -> Batch:
    """The same rows, those with the most documents first."""
    order = (batch.document[:, 1:] != batch.document[:, :-1]).sum(dim=1).argsort(descending=True, stable=True)
    return Batch(**{name: tensor[order] for name, tensor in vars(batch).items()})


def check_targets(model: Transformer, batch: Batch, loss: Loss) -> Line:
    """The targets are the tokens shifted by one; and the loss is the plain cross-entropy of exactly these."""
    advice = "the target of each token is the one after it: see loader.cut and the loss"
    counts = batch.weight[:, :-1] > 0
    wrong = ((batch.targets[:, :-1] != batch.tokens[:, 1:]) & counts).sum().item()
    if wrong:
        shifts = {shift: _agreement(batch, shift) for shift in range(-3, 5)}
        best = max(shifts, key=lambda shift: shifts[shift])
        seen = f"{wrong:,} of {counts.sum().item():,} targets are not the next token"
        if shifts[best] > 0.9:
            seen = f"targets are {_ahead(best)}"
        return judged("targets", seen, LEARNING, advice)
    reach = 3
    weight = batch.weight.clone()
    weight[:, -reach:] = 0
    hidden, summed = _hidden_and_loss(model, replace(batch, weight=weight), loss)
    with torch.no_grad():
        scores = model.logits(hidden).float().log_softmax(dim=-1)  # (B, T, V)
    plain = {}
    for shift in range(-reach, reach + 1):
        moved = batch.tokens.roll(-shift, dims=1).to(scores.device)
        each = -scores.gather(-1, moved[..., None])[..., 0] * weight.to(scores.device)
        plain[shift] = each[:, reach:].sum().item() if shift < 0 else each.sum().item()
    best = min((shift for shift in plain if shift >= 0), key=lambda shift: abs(plain[shift] - summed))
    if best != 1 or abs(plain[1] - summed) > 0.01 * abs(plain[1]):
        off = f"the loss is that of targets that are {_ahead(best)}" if best != 1 else "the loss is another one's"
        return judged("targets", f"{off}: {summed:.4f} in sum, plain cross-entropy of the next token {plain[1]:.4f}",
                      LEARNING, advice)  # fmt: skip
    return Line("targets", "each is the token after it, and the loss is their plain cross-entropy")


def _agreement(batch: Batch, shift: int) -> float:
    """Share of targets that equal the token so many places on."""
    length = batch.tokens.shape[1]
    here = slice(max(0, -shift), length - max(0, shift))
    there = slice(max(0, shift), length - max(0, -shift))
    return (batch.targets[:, here] == batch.tokens[:, there]).float().mean().item()


def _ahead(shift: int) -> str:
    if shift == 0:
        return "the tokens themselves (not shifted)"
    return f"{abs(shift)} places {'ahead' if shift > 0 else 'behind'}; it should be 1 ahead"


def _hidden_and_loss(model: Transformer, batch: Batch, loss: Loss) -> tuple[Tensor, float]:
    """The last hidden states that a loss made, and its part for the next token."""
    seen: list[Tensor] = []
    hook = model.norm.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            summed, _, parts = loss(model, to(batch, _device(model)))
    finally:
        hook.remove()
        model.train(training)
    return seen[0], parts.get("next_token", summed).item()


def check_mask(model: Transformer, batch: Batch, loss: Loss, seed: int = 0) -> Line:
    """No later token and no other document changes what is expected after a token; earlier ones do.

    Twice: by the gradient of the loss of some queries, which must be exactly nought at all tokens that they may not
    read, whatever the precision; and by changing those tokens.
    """
    advice = "attention must read a token's own document up to itself (model/attention.py, losses.by_document)"
    drawn = np.random.default_rng(seed)
    document = batch.document
    n, length = document.shape
    weight, allowed = torch.zeros_like(batch.weight), torch.zeros_like(document, dtype=torch.bool)
    for row in range(n):
        kinds, sizes = document[row][document[row] >= 0].unique(return_counts=True)
        long_enough = kinds[sizes >= 4]
        if not len(long_enough):
            continue
        later = long_enough[1:] if len(long_enough) > 1 else long_enough  # so that there is one before it
        own = document[row] == later[int(drawn.integers(len(later)))]
        places = own.nonzero()[:, 0]
        cut = int(places[int(drawn.integers(2, len(places)))])
        if cut == length - 1:
            cut -= 1
        queries = own & (torch.arange(length) <= cut)
        weight[row], allowed[row] = queries.float(), queries
    judged_batch = replace(batch, weight=weight * batch.weight)
    if not judged_batch.weight.any():
        return Line("mask", "no document is long enough to tell")
    touched = _input_gradient(model, judged_batch, loss, seed)
    leak = touched & ~allowed
    if leak.any():
        row, place = (int(each) for each in leak.nonzero()[0])
        chosen = document[row][allowed[row]][0]
        last = int(allowed[row].nonzero()[-1])
        what = (
            f"tokens up to {last} are expected with a look at token {place}, which comes later"
            if document[row, place] == chosen
            else f"a token is expected with a look at another document (token {place})"
        )
        return judged("mask", f"{what}: the mask leaks", LEARNING, advice)
    reads_back = (touched & allowed & (weight > 0)).sum(dim=1)
    if int(reads_back.max()) <= 1:
        return judged("mask", "no token reads any other: the mask hides everything", LEARNING, advice)
    if not isinstance(model.config.feedforward, Experts):  # whose kernels change their shapes with the choices
        vocabulary = model.config.vocab_size or 2
        other = torch.where(allowed, batch.tokens, (batch.tokens + 1) % vocabulary)
        before = _sum_of(model, judged_batch, loss, seed)
        after = _sum_of(model, replace(judged_batch, tokens=other), loss, seed)
        if abs(after - before) > 1e-5 * abs(before):
            return judged("mask", f"other tokens that come later or stand in other documents change the loss from "
                          f"{before:.5f} to {after:.5f}: the mask leaks", LEARNING, advice)  # fmt: skip
    crossed = int(((document[:, 1:] != document[:, :-1]) & (document[:, 1:] >= 0)).sum())
    return Line("mask", f"nothing read from later tokens, nor across {crossed} borders of documents, in {n} rows")


def _input_gradient(model: Transformer, batch: Batch, loss: Loss, seed: int) -> Tensor:
    """(B, T): whether the loss depends on the vector of each token."""
    assert model.embed is not None, "a whole model reads tokens"
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    hook = model.embed.register_forward_hook(keep)
    try:
        torch.manual_seed(seed)
        loss(model, to(batch, _device(model)))[0].backward()
    finally:
        hook.remove()
        model.zero_grad()
    assert seen[0].grad is not None, "every loss depends on its tokens"
    return (seen[0].grad != 0).any(dim=-1).cpu()


def _sum_of(model: Transformer, batch: Batch, loss: Loss, seed: int) -> float:
    torch.manual_seed(seed)
    with torch.no_grad():
        summed, _, parts = loss(model, to(batch, _device(model)))
    return parts.get("next_token", summed).item()


def check_ties(model: Transformer) -> Line:
    """Embedding and head are one matrix where the config says so, and two where not."""
    head = model.config.head
    if not isinstance(head, LanguageModel) or model.embed is None or not isinstance(model.head, nn.Linear):
        return Line("tied weights", "no head over the vocabulary")
    one = model.head.weight is model.embed.weight or model.head.weight.data_ptr() == model.embed.weight.data_ptr()
    if head.tied and not one:
        return judged("tied weights", "model.head.tied = true, but head and embedding are two matrices", LEARNING,
                      "tie them after the last change of either: model.tie()")  # fmt: skip
    if one and not head.tied:
        return judged("tied weights", "model.head.tied = false, but head and embedding are one matrix", LEARNING,
                      "give the head a matrix of its own")  # fmt: skip
    return Line("tied weights", "head and embedding are one matrix" if one else "not tied, as set")


def check_units(model: Transformer, batch: Batch, loss: Loss, trained: bool = False) -> Line:
    """Units of feed-forwards that give nothing for any token of the batch.

    Args:
        trained: the weights are a trained model's, in which many are dead or speak seldom: in a layer of OPT more than
            70% (Voita et al. 2023, arXiv:2309.04827, abstract).
    """
    largest: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, PlainFeedForward | GatedFeedForward):

            def keep(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                inner, ends = given[0].detach().abs().flatten(0, -2), given[1:]  # of stacked experts, where rows end
                for number, share in enumerate(inner.tensor_split(ends[0][:-1].tolist()) if ends else [inner]):
                    if len(share) >= 32:  # of an expert that few tokens met nothing can be said
                        largest[f"{name}.{number}" if ends else name] = share.amax(dim=0).float()

            hooks.append(module.down.register_forward_pre_hook(keep))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            loss(model, to(batch, _device(model)))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    if not largest:
        return Line("dead units", "no layer met enough tokens to tell")
    usual = torch.stack([units.median() for units in largest.values()]).median()
    dead = {name: (units <= 1e-4 * usual).float().mean().item() for name, units in largest.items()}
    if usual == 0:
        dead = {name: (units == 0).float().mean().item() for name, units in largest.items()}
    worst = max(dead, key=lambda name: dead[name])
    n = sum(share > 0.1 for share in dead.values())
    if trained:
        return Line("dead units", f"{dead[worst]:.1%} at most give nothing for these rows, in {len(dead)} layers")
    if dead[worst] > 0.1:
        others = f", and more than a tenth in {n - 1} other layers" if n > 1 else ""
        return judged("dead units", f"{dead[worst]:.0%} of the units of {worst} give nothing for any token{others}",
                      LEARNING, "they never will: look at that layer's weights and biases")  # fmt: skip
    return Line("dead units", f"{max(dead.values()):.1%} at most, in {len(largest)} layers")


def check_start(mean_loss: float, vocab_size: int, d_model: int) -> Line:
    """The loss of a model that knows nothing: ln V, and a little for the spread of its scores."""
    expected = math.log(vocab_size)
    spread = 0.02**2 * d_model / 2  # of scores of unit-length states and weights of deviation 0.02
    seen = f"{mean_loss:.3f}; ln {vocab_size:,} = {expected:.3f}"
    if not math.isfinite(mean_loss):
        return judged("loss at start", seen, LEARNING, "a weight or a score is not a finite number")
    if mean_loss < expected - 0.1 * expected:
        return judged("loss at start", seen, LEARNING, "it knows already what it should predict: something leaks")
    if mean_loss > expected + 0.1 * expected + 2 * spread:
        return Line("loss at start", seen, "take care", "the first steps will only unlearn this")
    return Line("loss at start", seen)


def check_trained_weights(model: Transformer, start: Path) -> Line:
    """The weights that were taken from the model in `start` are finite numbers, also in this model's precision."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if broken := int((~weight.isfinite()).sum()):
            return judged("start", f"of {weight.numel():,} numbers in {name} of {start}, {broken:,} are not finite in "
                          f"{str(weight.dtype).removeprefix('torch.')}", DATA, "begin with another model")  # fmt: skip
    return Line("start", f"the weights of {start}: {len(weights)} tensors, all finite")


def check_trained_start(loss: float, known: float, rows: str, vocab_size: int, frequencies: float) -> Line:
    """The first loss of a model that begins with trained weights: far below ln V, the loss of one that knows nothing.

    Args:
        loss: of the first rows.
        known: the same without the tokens that were added to the vocabulary, of which the model may know nothing yet.
        rows: which they are, in words.
        frequencies: the loss of a model that knows only how often each token occurs in these texts.
    """
    chance = math.log(vocab_size)
    seen = f"{loss:.3f} on {rows}; a model that knows nothing has ln {vocab_size:,} = {chance:.3f}"
    if known != loss:
        seen += f"; {known:.3f} without the tokens that were added to the vocabulary"
    if not math.isfinite(loss):
        return judged("loss at start", seen, LEARNING, "a hidden state or score is not a finite number, though all "
                      "weights are: try pretrain.precision=float32, or begin with another model")  # fmt: skip
    if known > NEAR_CHANCE * chance:
        return judged("loss at start", seen, LEARNING, "begin with a model that knows such texts by these ids, or "
                      "leave pretrain.start out")  # fmt: skip
    if known > frequencies:
        seen += f", one that knows only how often each token occurs {frequencies:.3f}"
        return Line("loss at start", seen, "take care", "the texts are far from what the model has learned: most of it "
                    "will be learned anew")  # fmt: skip
    return Line("loss at start", seen)


def token_frequencies_loss(counts: npt.NDArray[np.int64]) -> float:
    """Of a model that gives each token the share of the texts that it has: the entropy of these shares, in nats.

    >>> round(token_frequencies_loss(np.array([2, 2, 0, 4])) / math.log(2), 6)
    1.5
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def check_gradients(weights: Mapping[str, Tensor], trained: bool = False) -> Line:
    """After a backward pass: finite, there for every matrix, and of like size over the layers.

    Args:
        weights: those that the optimizer steps, by name, with their gradients.
        trained: they are a trained model's, in which a block may be switched off by a matrix of zeros.
    """
    norms = {name: weight.grad.norm().item() for name, weight in weights.items() if weight.grad is not None}
    broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if broken:
        return judged("gradients", f"of {broken[0]} not finite", LEARNING, "look at the loss and the precision")
    unreached = [
        name
        for name, weight in weights.items()
        if weight.ndim >= 2 and not norms.get(name) and ".experts." not in name and not name.startswith("position")
    ]
    if unreached and trained and all(weights[name].grad is not None for name in unreached):
        return Line("gradients", f"finite; zero for {_some(unreached)}")
    if unreached:
        more = f" and {len(unreached) - 1} more" if len(unreached) > 1 else ""
        return judged("gradients", f"none reaches {unreached[0]}{more}", LEARNING, "something cuts it off, "
                      "or it is not used")  # fmt: skip
    layers: dict[str, float] = {}
    for name, norm in norms.items():
        if name.startswith("blocks."):
            layer = name.split(".")[1]
            layers[layer] = math.hypot(layers.get(layer, 0.0), norm)
    low, high = min(layers.values()), max(layers.values())
    seen = f"finite; norms over layers {low:.2g} to {high:.2g}"
    if high > 100 * max(low, 1e-30) and not trained:
        small = min(layers, key=lambda layer: layers[layer])
        return Line("gradients", seen, "take care", f"layer {small} gets next to none: look at norms and weights")
    return Line("gradients", seen)


def check_numbers(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Line:
    """After a step: what the optimizer steps and what it remembers is in float32, and nothing is left out."""
    advice = "in bfloat16 small updates are lost: step float32 master copies (optim.precision.Masters)"
    coarse = [f"{name} ({weight.dtype})" for name, weight in weights.items() if weight.dtype.itemsize < 4]
    if coarse:
        return judged("optimizer state", f"weights that are stepped: {_some(coarse)}", LEARNING, advice)
    for name, weight in weights.items():
        for key, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor) and value.is_floating_point() and value.dtype.itemsize < 4:
                coarse.append(f"{key} of {name} ({value.dtype})")
    if coarse:
        return judged("optimizer state", _some(coarse), LEARNING, advice)
    stepped = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    left_out = [name for name, weight in weights.items() if id(weight) not in set(stepped)]
    if left_out or len(stepped) != len(set(stepped)):
        seen = f"not stepped: {_some(left_out)}" if left_out else "some weights are stepped twice"
        return judged("optimizer state", seen, LEARNING, "every weight belongs to exactly one group")
    return Line("optimizer state", f"weights, gradients' sums and moments of {len(weights)} tensors in float32")


def _some(names: Sequence[str]) -> str:
    return names[0].replace("torch.", "") + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _device(model: Transformer) -> torch.device:
    return next(model.parameters()).device


# --- learning ---


def check_range(rates: Sequence[float], losses: Sequence[float], rate: float, start: float) -> Line:
    """A sweep of the learning rate, from step to step a little higher (Smith 2017, arXiv:1506.01186, section 3.3).

    Args:
        losses: before each step, that of a batch it has not met; ended when all that was learned is lost again.
        rate: that of the recipe.
        start: the loss at first.
    """
    smooth = _smoothed(losses)
    best = int(np.argmin(smooth))
    lost = next((rates[i] for i in range(best, len(rates)) if smooth[i] >= start), math.inf)
    seen = f"falls fastest up to {rates[best]:.1g}, " + (
        f"all is lost again at {lost:.1g}" if math.isfinite(lost) else f"holds up to {rates[len(losses) - 1]:.1g}"
    )
    better = f"pretrain.optimizer.learning_rate={rates[best] / 3:.1g}"
    if rate >= min(lost, 8 * rates[best]):
        return judged("learning-rate range", f"{seen}; the recipe's {rate:.3g} is {3 * rate / rates[best]:,.0f} times "
                      "too high", LEARNING, f"set {better}")  # fmt: skip
    if rate > 4 * rates[best]:
        return Line("learning-rate range", f"{seen}; the recipe has {rate:.3g}", "take care", f"set {better}")
    if rate < rates[best] / 300:
        return Line("learning-rate range", f"{seen}; the recipe has {rate:.3g}", "take care", f"set {better}")
    return Line("learning-rate range", f"{seen}; the recipe has {rate:.3g}")


def check_trained_range(
    rates: Sequence[float], losses: Sequence[float], untouched: Sequence[float], rate: float, vocab_size: int
) -> Line:
    """The same of a trained model, which has more to lose than to win, beside what its loss is when it learns nothing.

    Args:
        losses: before each step, as of `check_range`.
        untouched: of the same batches, by the weights it began with.
        rate: that of the recipe.
    """
    rises = _smoothed([loss - before for loss, before in zip(losses, untouched, strict=False)])
    half = max(math.log(vocab_size) - untouched[0], 0.1 * untouched[0]) / 2
    lost = next((rates[i] for i, rise in enumerate(rises) if rise >= half), math.inf)
    best = rates[int(np.argmin(rises))]
    seen = f"falls up to {best:.1g}" if min(rises) < 0 else "does not fall"
    seen += (
        f", half of what it knows is lost at {lost:.1g}" if math.isfinite(lost) else f", holds up to {rates[-1]:.1g}"
    )
    seen += f"; the recipe has {rate:.3g}"
    better = f"set pretrain.optimizer.learning_rate={lost / 10:.1g}"
    if rate >= lost:
        return judged("learning-rate range", seen, LEARNING, better)
    if rate > lost / 3:
        return Line("learning-rate range", seen, "take care", better)
    return Line("learning-rate range", seen)


def _smoothed(losses: Sequence[float]) -> list[float]:
    """The median of three neighbours; what is not a number counts as very high."""
    numbers = [loss if math.isfinite(loss) else 1e30 for loss in losses]
    padded = [numbers[0], *numbers, numbers[-1]]
    return [sorted(padded[i : i + 3])[1] for i in range(len(numbers))]


def check_overfit(losses: Sequence[float], trained: bool = False) -> Line:
    """The loss of one batch, step after step on itself alone.

    Args:
        trained: the weights are a trained model's, which may know these rows well and learn at a low rate: that the
            loss does not rise is enough.
    """
    seen = f"{losses[0]:.2f} to {losses[-1]:.2f} in {len(losses) - 1} steps on the same rows"
    if trained and losses[-1] < 1.05 * losses[0]:
        return Line("one batch by heart", seen)
    if not math.isfinite(losses[-1]) or losses[-1] > 0.95 * losses[0]:
        return judged("one batch by heart", seen, LEARNING, "what cannot learn a few rows learns nothing: look at the "
                      "learning rate, the optimizer and the gradients")  # fmt: skip
    if losses[-1] > 0.85 * losses[0]:
        return Line("one batch by heart", seen, "take care", "slow: is pretrain.optimizer.learning_rate too low?")
    return Line("one batch by heart", seen)
