"""The memory that a training needs, part by part, before it begins; and the smallest change that makes it fit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from groundup.model.count import DTYPES, count
from groundup.model.settings import LearnedPosition, ModelConfig
from groundup.optim.memory import state_bytes
from groundup.optim.precision import weight_dtype
from groundup.optim.settings import Average, Optimizer, Precision
from groundup.train.losses import CHUNK
from groundup.words import byte_size

PLURALS = {"weight": "weights", "gradient": "gradients", "master copy": "master copies", "optimizer": "optimizer state"}


@dataclass(frozen=True)
class MemoryNeeds:
    """What decides how much memory a training takes."""

    model: ModelConfig
    """With its vocabulary."""
    precision: Precision
    optimizer: Optimizer
    rows: int
    """Rows of a micro-batch."""
    recompute: str = "none"
    """What of a block is computed again in the backward pass; `selective` is counted as if it saved nothing."""
    average: Average | None = None
    has_start: bool = False
    """Whether its weights are another model's, which decide its shape."""

    def parts(self) -> Mapping[str, int]:
        """Bytes of each part at the height of a step, the largest first."""
        counted = count(self.model)
        kept = state_bytes(self.model, self.precision, self.optimizer, self.average)
        parts = {PLURALS.get(what, what): size for what, size in kept.items()}
        precision = self._counted_as
        if self.recompute == "full":
            parts["activations"] = counted.checkpointed_activation_bytes[precision] * self.rows
        else:
            for part, size in counted.activation_bytes[precision].items():
                parts[f"activations of {part.replace('_', ' ')}"] = size * self.rows
        parts["scores in the loss"] = self._loss_bytes(precision)
        return dict(sorted(parts.items(), key=lambda part: -part[1]))

    def bytes(self) -> int:
        return sum(self.parts().values())

    @property
    def _counted_as(self) -> str:
        """The precision, of those for which activations are counted, whose numbers are as wide."""
        width = weight_dtype(self.precision).itemsize
        return next(name for name, dtype in DTYPES.items() if dtype.itemsize == width)

    def _loss_bytes(self, precision: str) -> int:
        """A chunk's logits, their softmax and its gradient in float32; in bfloat16 also all logits as they came."""
        tokens, vocabulary = self.rows * self.model.context_length, self.model.vocab_size or 0
        kept = 2 * tokens * vocabulary if precision == "bfloat16" else 0
        return 3 * 4 * min(CHUNK, tokens) * vocabulary + kept


def breakdown(needs: MemoryNeeds) -> str:
    """The parts in words, the smallest ones together."""
    parts = list(needs.parts().items())
    words = [f"{name} {byte_size(size)}" for name, size in parts[:7]]
    if len(parts) > 7:
        words.append(f"the rest {byte_size(sum(size for _, size in parts[7:]))}")
    return f"{byte_size(needs.bytes())}: " + ", ".join(words)


def smallest_change(needs: MemoryNeeds, available: int) -> str:
    """The setting to change, with its value, so that a training fits into `available` bytes.

    Smaller micro-batches and recomputation change results only by rounding, so they come first; then a shorter context,
    then fewer layers.
    """
    fitting = (words for words, smaller in _smaller(needs) if smaller.bytes() <= available)
    if needs.has_start:
        return next(fitting, "begin with a smaller model (pretrain.start)")
    return next(fitting, "make the model smaller in width (model.d_model) or vocabulary (tokenizer.vocab_size)")


def _smaller(needs: MemoryNeeds) -> Iterator[tuple[str, MemoryNeeds]]:
    """What to change, and what is then needed."""
    rows = needs.rows
    while rows > 1:
        rows //= 2
        yield f"set pretrain.micro_batch_rows={rows}", replace(needs, rows=rows)
    one_row = "set pretrain.micro_batch_rows=1 and"
    yield f"{one_row} pretrain.recompute=full", replace(needs, rows=1, recompute="full")
    model = needs.model
    context, layers = model.context_length, model.n_layers
    if not needs.has_start or not isinstance(model.position, LearnedPosition):
        while context % 2 == 0 and context >= 128:  # still a divisor of batch_tokens
            context //= 2
            shorter = replace(needs, rows=1, model=model.model_copy(update={"context_length": context}))
            yield f"{one_row} model.context_length={context}", shorter
    while layers > 1 and not needs.has_start:
        layers //= 2
        fewer = replace(needs, rows=1, model=model.model_copy(update={"n_layers": layers}))
        yield f"{one_row} model.n_layers={layers}", fewer
