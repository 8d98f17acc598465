"""The doctor's checks of settings, model and learning. Each takes what it looks at and returns a verdict.

B batch, T time, V vocabulary.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from groundup.batch import Batch, to
from groundup.errors import DataError
from groundup.model.dropout import row_keys
from groundup.model.feedforward import FeedForward, MixtureOfExperts, Tap
from groundup.model.presets import PRESETS
from groundup.model.settings import Experts, LanguageModel, ModelConfig
from groundup.model.transformer import Transformer, evaluating
from groundup.optim.settings import AdamW
from groundup.plan.laws import MOST_PASSES
from groundup.pretrain.doctor.verdict import Verdict, error, judge, ok, warning
from groundup.pretrain.settings import PretrainSettings
from groundup.train.fit import Loss

NEAR_CHANCE = 0.95
"""A trained model with a loss above this share of ln V knows nothing of these ids."""


# --- settings ---


def check_learning_rate(config: ModelConfig, settings: PretrainSettings) -> Verdict:
    """Compare the rate with the line through the published rates over the published sizes (`model/presets.py`)."""
    check, rate = "learning rate", settings.optimizer.learning_rate
    if not isinstance(settings.optimizer, AdamW):
        return ok(check, f"{rate:.3g}; not compared, since published rates are AdamW's")
    published = [(each.model.parameters, each.learning_rate) for each in PRESETS.values() if each.learning_rate]
    sizes, rates = np.log(np.array(published)).T
    slope, level = np.polyfit(sizes, rates, 1)
    usual = math.exp(level + slope * math.log(config.parameters))
    finding = f"{rate:.3g}; for {config.parameters:,} parameters published models suggest about {usual:.1g}"
    lowest = usual / 30 if settings.start is None else 0.0  # a trained model may be changed as little as wanted
    times = f"{rate / usual:,.0f} times too high" if rate > usual else f"{usual / rate:,.0f} times too low"
    advice = f"{times}: set pretrain.optimizer.learning_rate={usual:.1g}"
    return judge(check, finding, (not lowest <= rate <= usual * 8, warning, advice))


def check_optimizer_settings(settings: PretrainSettings) -> Verdict:
    """Compare the optimizer's other settings with those of published trainings."""
    optimizer = settings.optimizer
    if not isinstance(optimizer, AdamW):
        return ok("optimizer", f"{optimizer.kind}")
    finding = f"betas {optimizer.beta1:g} and {optimizer.beta2:g}, weight decay {optimizer.weight_decay:g}"
    usual = {"beta1": (0.8, 0.98, 0.9), "beta2": (0.9, 0.9995, 0.95), "weight_decay": (0.0, 0.5, 0.1),
             "epsilon": (1e-20, 1e-5, 1e-8)}  # fmt: skip
    odd = [
        f"pretrain.optimizer.{name}={best:g}"
        for name, (low, high, best) in usual.items()
        if not low <= getattr(optimizer, name) <= high
    ]
    return judge("optimizer", finding, (odd, warning, f"published trainings have about {', '.join(odd)}"))


def check_length(config: ModelConfig, settings: PretrainSettings, train_tokens: int) -> Verdict:
    """Compute tokens per parameter, and how often the text is read."""
    tokens = settings.steps * settings.batch_tokens
    per_parameter, passes = tokens / config.parameters, tokens / max(1, train_tokens)
    fewer = _fewer_steps(settings, int(settings.steps * MOST_PASSES / passes))
    too_short = per_parameter < 0.1 and settings.start is None
    return judge(
        "length",
        f"{tokens:,} tokens: {per_parameter:.2g} per parameter, the text {passes:.2g} times",
        (passes > 2 * MOST_PASSES, warning, f"overfitting after {MOST_PASSES} times: use more text{fewer}"),
        (too_short, warning, "a smaller model would learn more from so little text"),
    )


def _fewer_steps(settings: PretrainSettings, steps: int) -> str:
    """The settings of a training with so many steps, and of a schedule that fits; empty if it cannot be shorter."""
    limits = {"warmup_steps": steps // 10, "decay_steps": steps // 5}
    shorter = [
        f"pretrain.schedule.{name}={limit}"
        for name, limit in limits.items()
        if (getattr(settings.schedule, name, None) or 0) > limit
    ]
    return f", or fewer steps ({' '.join([f'pretrain.steps={steps}', *shorter])})" if steps else ""


def check_warmup(settings: PretrainSettings) -> Verdict:
    """Compare the warm-up with the length of the training."""
    steps = settings.schedule.warmup_steps
    if steps is None:
        return ok("warm-up", f"chosen automatically, of {settings.steps:,} steps")
    change = "pretrain.schedule.warmup_steps"
    room = settings.steps - (getattr(settings.schedule, "decay_steps", None) or 0)
    missing = steps == 0 and settings.steps > 100 and room > 0
    return judge(
        "warm-up",
        f"{steps:,} of {settings.steps:,} steps",
        (steps > 0.3 * settings.steps, warning, f"most of it is warm-up: {change}={settings.steps // 10}"),
        (missing, warning, f"the first steps are unstable: {change}={min(50, room)}"),
    )


# --- the model and its loss ---


def first_tokens(batch: Batch, tokens: int) -> Batch:
    """The first rows of a batch, or the beginning of its first row, with about so many tokens."""
    rows = max(1, tokens // batch.tokens.shape[1])
    return Batch(**{name: tensor[:rows, : max(16, tokens)] for name, tensor in vars(batch).items()})


def most_documents_first(batch: Batch) -> Batch:
    """The rows of a batch, those with the most documents first."""
    order = (batch.document[:, 1:] != batch.document[:, :-1]).sum(dim=1).argsort(descending=True, stable=True)
    return Batch(**{name: tensor[order] for name, tensor in vars(batch).items()})


def check_targets(model: Transformer, batch: Batch, loss: Loss) -> Verdict:
    """Whether targets are the tokens shifted by one, and the loss is the plain cross-entropy of exactly these."""
    behind, ahead = 1, 3
    weight = batch.weight.clone()
    weight[:, :behind], weight[:, -ahead:] = 0, 0  # where a shift goes around the ends
    hidden, summed = hidden_and_loss(model, replace(batch, weight=weight), loss)
    with torch.no_grad():
        scores = model.logits(hidden).float().log_softmax(dim=-1)  # (B, T, V)
    tokens, weight = batch.tokens.to(scores.device), weight.to(scores.device)
    plain = {
        shift: -(scores.gather(-1, tokens.roll(-shift, dims=1)[..., None])[..., 0] * weight).sum().item()
        for shift in range(-behind, ahead + 1)
    }
    wrong = int(((batch.targets[:, :-1] != batch.tokens[:, 1:]) & (batch.weight[:, :-1] > 0)).sum())
    best = min(plain, key=lambda shift: abs(plain[shift] - summed))
    is_plain = abs(plain[best] - summed) <= 0.01 * abs(plain[best])
    if not wrong and best == 1 and is_plain:
        return ok("targets", "each is the token after it, and the loss is their plain cross-entropy")
    finding = f"the loss is that of targets at {best:+} instead of +1" if is_plain else "the loss is another one"
    finding += f": {summed:.4f} in sum, plain cross-entropy of the next token {plain[1]:.4f}"
    if wrong:
        finding = f"{wrong:,} of {batch.targets[:, :-1].numel():,} targets are not the next token; {finding}"
    return error("targets", finding, "the target of each token is the one after it: see loader.cut and the loss")


def hidden_and_loss(model: Transformer, batch: Batch, loss: Loss) -> tuple[Tensor, float]:
    """The last hidden states that a loss made, and its part for the next token."""
    states: list[Tensor] = []
    hook = model.norm.register_forward_hook(lambda _, __, output: states.append(output.detach()))
    with hook, evaluating(model):
        _, _, parts = loss(model, to(batch, _device(model)))
    return states[0], parts["next_token"].item()


def check_mask(model: Transformer, batch: Batch, loss: Loss) -> Verdict:
    """Whether predictions depend on no later token and no other document, and on earlier tokens.

    Twice: by the gradient of the loss of some queries, which must be exactly zero at all tokens that they may not
    read, whatever the precision; and by changing those tokens.
    """
    document = batch.document
    allowed = _some_queries(document)
    queried = replace(batch, weight=allowed * batch.weight)
    if not queried.weight.any():
        return ok("mask", "no document is long enough to tell")
    before, is_read = _find_read_tokens(model, queried, loss)
    leak, fault = is_read & ~allowed, ""
    if leak.any():
        row, position = (int(each) for each in leak.nonzero()[0])
        if document[row, position] == document[row][allowed[row]][0]:
            last = int(allowed[row].nonzero()[-1])
            fault = f"predictions up to token {last} depend on token {position}, which comes later: the mask leaks"
        else:
            fault = f"a prediction depends on another document (token {position}): the mask leaks"
    elif int((is_read & allowed).sum(dim=1).max()) <= 1:
        fault = "no prediction depends on any other token: the mask hides everything"
    elif not isinstance(model.config.feedforward, Experts):  # their kernels change shapes with the choice of experts
        other = torch.where(allowed, batch.tokens, (batch.tokens + 1) % (model.config.vocab_size or 2))
        with torch.no_grad():
            after = _with_same_dropout(model, replace(queried, tokens=other), loss)[1]["next_token"].item()
        if abs(after - before) > 1e-5 * abs(before):
            fault = f"later tokens or other documents change the loss from {before:.5f} to {after:.5f}: the mask leaks"
    borders = int(((document[:, 1:] != document[:, :-1]) & (document[:, 1:] >= 0)).sum())
    well = f"nothing is read from later tokens, nor across {borders} borders of documents, in {len(document)} rows"
    advice = "attention must read a token's own document up to itself (model/attention.py, losses.by_document)"
    return judge("mask", fault or well, (fault, error, advice))


def _some_queries(document: Tensor) -> Tensor:
    """(B, T): in each row the first half of its last document that is long enough."""
    chosen = torch.zeros_like(document, dtype=torch.bool)
    for row, documents in enumerate(document):
        numbers, sizes = documents[documents >= 0].unique(return_counts=True)
        if (sizes >= 4).any():
            own = documents == numbers[sizes >= 4][-1]
            chosen[row] = own & (own.cumsum(dim=0) <= own.sum() // 2)
    return chosen


def _find_read_tokens(model: Transformer, batch: Batch, loss: Loss) -> tuple[float, Tensor]:
    """The loss of the next tokens, and (B, T) whether the loss depends on the vector of each token."""
    assert model.embed is not None, "a whole model reads tokens"
    vectors: list[Tensor] = []
    with model.embed.register_forward_hook(lambda _, __, output: vectors.append(output)):
        total, parts = _with_same_dropout(model, batch, loss)
    (gradient,) = torch.autograd.grad(total, vectors)  # without gradients of weights, where those of step 1 are kept
    return parts["next_token"].item(), (gradient != 0).any(dim=-1).cpu()


def _with_same_dropout(model: Transformer, batch: Batch, loss: Loss) -> tuple[Tensor, dict[str, Tensor]]:
    model.keys = row_keys(0, 0, 0, len(batch.tokens), _device(model))
    total, _, parts = loss(model, to(batch, _device(model)))
    model.keys = None
    return total, parts


def check_ties(model: Transformer) -> Verdict:
    """Whether embedding and head are one matrix if the config says so, and two if not."""
    head, check = model.config.head, "tied weights"
    if not isinstance(head, LanguageModel) or model.embed is None or not isinstance(model.head, nn.Linear):
        return ok(check, "no head over the vocabulary")
    one = model.head.weight is model.embed.weight or model.head.weight.data_ptr() == model.embed.weight.data_ptr()
    if head.tied == one:
        return ok(check, "head and embedding are one matrix" if one else "not tied, as set")
    said, are = str(head.tied).lower(), "one matrix" if one else "two matrices"
    advice = "give the head a matrix of its own" if one else "tie them after the last change of either: model.tie()"
    return error(check, f"model.head.tied = {said}, but head and embedding are {are}", advice)


def check_units(model: Transformer, batch: Batch, loss: Loss, trained: bool = False) -> Verdict:
    """Whether units of feed-forwards are dead: zero for every token of the batch.

    Args:
        trained: the weights are a trained model's, in which many are dead or seldom active: in a layer of OPT more than
            70% (Voita et al. 2023, arXiv:2309.04827, abstract).
    """
    check, largest = "dead units", dict[str, Tensor]()

    def keep(name: str, inner: Tensor) -> None:
        rows = inner.detach().abs().flatten(0, -2)
        if len(rows) >= 32:  # nothing can be said of an expert that got few tokens
            largest[name] = rows.amax(dim=0).float()

    def tap_of(mixture: str) -> Tap:
        """Keeps what the experts of a mixture show, one after the other."""
        number = itertools.count()
        return lambda what, inner: keep(f"{mixture}.{next(number)}", inner) if what == "active" else None

    with ExitStack() as hooks, evaluating(model):
        for name, module in model.named_modules():
            if isinstance(module, MixtureOfExperts):
                tap = tap_of(name)
                hook = module.register_forward_pre_hook(lambda _, given, tap=tap: (given[0], tap))
            elif isinstance(module, FeedForward) and not name.endswith(("experts", "shared")):
                hook = module.down.register_forward_pre_hook(lambda _, given, name=name: keep(name, *given))
            else:
                continue
            hooks.enter_context(hook)
        loss(model, to(batch, _device(model)))
    if not largest:
        return ok(check, "no layer got enough tokens to tell")
    usual = torch.stack([units.median() for units in largest.values()]).median()
    dead = {name: (units <= 1e-4 * usual).float().mean().item() for name, units in largest.items()}
    worst = max(dead, key=dead.__getitem__)
    n = sum(share > 0.1 for share in dead.values())
    if trained or not n:
        return ok(check, f"{dead[worst]:.1%} at most are zero for these rows, in {len(dead)} layers")
    others = f", and more than a tenth in {n - 1} other layers" if n > 1 else ""
    finding = f"{dead[worst]:.0%} of the units of {worst} are zero for every token{others}"
    return error(check, finding, "they never learn: look at that layer's weights and biases")


def check_start(mean_loss: float, vocab_size: int, d_model: int) -> Verdict:
    """Compare the first loss with that of uniform predictions: ln V, and a little for the spread of the logits."""
    expected = math.log(vocab_size)
    spread = 0.02**2 * d_model / 2  # of logits of unit-length states and weights of deviation 0.02
    return judge(
        "loss at start",
        f"{mean_loss:.3f}; ln {vocab_size:,} = {expected:.3f}",
        (not math.isfinite(mean_loss), error, "a weight or a logit is not a finite number"),
        (mean_loss < 0.9 * expected, error, "it knows already what it should predict: something leaks"),
        (mean_loss > 1.1 * expected + 2 * spread, warning, "the first steps will only unlearn this"),
    )


def check_trained_weights(model: Transformer, start: Path) -> Verdict:
    """Whether the weights from the model in `start` are finite numbers, also in this model's precision."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if broken := int((~weight.isfinite()).sum()):
            finding = (
                f"of {weight.numel():,} numbers in {name} of {start}, {broken:,} are not finite in "
                f"{str(weight.dtype).removeprefix('torch.')}"
            )
            return error("start", finding, "begin with another model", DataError)
    return ok("start", f"the weights of {start}: {len(weights)} tensors, all finite")


def check_trained_start(loss: float, known: float, rows: str, vocab_size: int, frequencies: float) -> Verdict:
    """Compare the first loss of a model with trained weights with ln V, the loss of one that knows nothing.

    Args:
        loss: of the first rows.
        known: the loss without the tokens that were added to the vocabulary, which the model may not know yet.
        rows: names these rows.
        frequencies: the loss of a model that knows only how often each token occurs in these texts.
    """
    chance, finite = math.log(vocab_size), math.isfinite(loss)
    finding = f"{loss:.3f} on {rows}; a model that knows nothing has ln {vocab_size:,} = {chance:.3f}"
    if known != loss:
        finding += f"; {known:.3f} without the tokens that were added to the vocabulary"
    if not finite:
        finding += "; a hidden state or logit is not a finite number, though all weights are"
    elif frequencies < known <= NEAR_CHANCE * chance:
        finding += f", one that knows only how often each token occurs {frequencies:.3f}"
    differ = "the texts differ so much from what it knows that it will relearn most of it"
    foreign = "begin with a model that knows such texts by these ids, or leave pretrain.start out"
    return judge(
        "loss at start",
        finding,
        (not finite, error, "try pretrain.precision=float32, or begin with another model"),
        (known > NEAR_CHANCE * chance, error, foreign),
        (known > frequencies, warning, differ),
    )


def check_gradients(weights: Mapping[str, Tensor], trained: bool = False) -> Verdict:
    """Whether, after a backward pass, gradients are finite, there for every matrix, and of like size over the layers.

    Args:
        weights: those that the optimizer steps, by name, with their gradients.
        trained: they are a trained model's, in which a block may be switched off by a matrix of zeros.
    """
    norms = {name: weight.grad.norm().item() for name, weight in weights.items() if weight.grad is not None}
    broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if broken:
        return error("gradients", f"{broken[0]}: not finite", "look at the loss and the precision")
    unreached = [
        name
        for name, weight in weights.items()
        if weight.ndim >= 2 and not norms.get(name) and ".experts." not in name and not name.startswith("position")
    ]
    if unreached and trained and all(weights[name].grad is not None for name in unreached):
        return ok("gradients", f"finite; zero for {_first_of(unreached)}")
    if unreached:
        return error("gradients", f"none for {_first_of(unreached)}", "something cuts it off, or it is not used")
    layers: dict[str, float] = {}
    for name, norm in norms.items():
        if name.startswith("blocks."):
            layer = name.split(".")[1]
            layers[layer] = math.hypot(layers.get(layer, 0.0), norm)
    smallest, high = min(layers, key=layers.__getitem__), max(layers.values())
    low = layers[smallest]
    vanishing = high > 100 * max(low, 1e-30) and not trained
    advice = f"layer {smallest} gets almost none: look at norms and weights"
    finding = f"finite; norms over layers {low:.2g} to {high:.2g}"
    return judge("gradients", finding, (vanishing, warning, advice))


def check_numbers(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Verdict:
    """Whether, after a step, the optimizer steps every weight once, and weights and moments are in float32."""
    check = "optimizer state"
    numbers = dict(weights) | {
        f"{key} of {name}": value
        for name, weight in weights.items()
        for key, value in optimizer.state.get(weight, {}).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    coarse = [f"{name} ({tensor.dtype})" for name, tensor in numbers.items() if tensor.dtype.itemsize < 4]
    if coarse:
        advice = "bfloat16 loses small updates: step float32 master weights (optim.masters.Masters)"
        return error(check, _first_of(coarse).replace("torch.", ""), advice)
    stepped = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    left_out = [name for name, weight in weights.items() if id(weight) not in set(stepped)]
    if left_out or len(stepped) != len(set(stepped)):
        finding = f"not stepped: {_first_of(left_out)}" if left_out else "some weights are stepped twice"
        return error(check, finding, "put every weight into exactly one group")
    return ok(check, f"weights, gradient sums and moments of {len(weights)} tensors in float32")


def _first_of(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _device(model: Transformer) -> torch.device:
    return next(model.parameters()).device


# --- learning ---


def check_range(
    rates: Sequence[float], losses: Sequence[float], untouched: Sequence[float], rate: float, known: float = 0.0
) -> Verdict:
    """Judge a sweep of the learning rate, raised from step to step (Smith 2017, arXiv:1506.01186, section 3.3).

    Args:
        losses: before each step, that of a new batch; ended when all that was learned is lost again.
        untouched: the losses of the same batches by the weights it began with.
        rate: that of the recipe.
        known: how many nats a token the weights knew before, which are a trained model's: it has more to lose than to
            win. 0 for a new model.
    """
    rises = _smooth([loss - before for loss, before in zip(losses, untouched, strict=False)])
    best = int(np.argmin(rises))
    falls_at = rates[best]
    lost = next((rates[i] for i in range(best, len(rises)) if rises[i] >= known / 2), math.inf)
    what = "half of what it knows" if known else "all"
    finding = f"the loss falls up to {falls_at:.1g}" if min(rises) < 0 else "the loss does not fall"
    finding += f", {what} is lost at {lost:.1g}" if lost < math.inf else f", holds up to {rates[len(rises) - 1]:.1g}"
    finding += f"; the recipe has {rate:.3g}"
    lowest, usual, high, too_high = (
        (0.0, lost / 10, lost / 3, lost)
        if known
        else (falls_at / 300, falls_at / 3, 4 * falls_at, min(lost, 8 * falls_at))
    )
    advice = f"set pretrain.optimizer.learning_rate={usual:.1g}"
    return judge(
        "learning-rate range",
        finding,
        (rate >= too_high, error, f"{rate / usual:,.0f} times too high: {advice}"),
        (not lowest <= rate <= high, warning, advice),
    )


def _smooth(losses: Sequence[float]) -> list[float]:
    """The median of each three neighbours; what is not a number counts as very high."""
    numbers = [loss if math.isfinite(loss) else 1e30 for loss in losses]
    padded = [numbers[0], *numbers, numbers[-1]]
    return [sorted(padded[i : i + 3])[1] for i in range(len(numbers))]


def check_overfit(losses: Sequence[float], trained: bool = False) -> Verdict:
    """Judge the loss of one batch, step after step on itself alone.

    Args:
        trained: the weights are a trained model's, which may know these rows well and learn at a low rate: the loss
            only must not rise.
    """
    first, last = losses[0], losses[-1]
    known = trained and last < 1.05 * first
    stuck = not math.isfinite(last) or last > 0.95 * first
    return judge(
        "overfits one batch",
        f"{first:.2f} to {last:.2f} in {len(losses) - 1} steps on the same rows",
        (not known and stuck, error, "look at learning rate, optimizer and gradients: a few rows must be learnable"),
        (not known and last > 0.85 * first, warning, "slow: is pretrain.optimizer.learning_rate too low?"),
    )
