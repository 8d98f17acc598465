"""Engine: continues sequences of ids. It knows nothing of text. B rows, T tokens, V vocabulary."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from groundup.errors import DivergedError, SettingsError
from groundup.generation.cache import ContiguousCache
from groundup.generation.sample import draw, probabilities
from groundup.generation.settings import Sampling
from groundup.model.transformer import Transformer, evaluating

Look = Callable[[int, Tensor], None]
"""Is shown each id that was chosen and the logits, (V,), that it was chosen by."""


def continue_ids(
    model: Transformer,
    prompt: Sequence[int],
    sampling: Sampling,
    stops: Collection[int] = (),
    never: Sequence[int] = (),
    look: Look | None = None,
) -> Iterator[int]:
    """The ids after `prompt`, one at a time, until one of `stops` or `max_tokens`; none of `never` is chosen.

    When the context is full, the later half of it is read again from position 0 and the earlier half forgotten.

    Args:
        model: is in `eval()` while it computes an id.
        sampling: how an id is chosen.
        look: is shown each id that was chosen and the logits, (V,), that it was chosen by.

    Raises:
        SettingsError: an empty prompt, or one longer than the context.
        DivergedError: scores that are not finite.

    >>> from groundup.model.settings import ModelConfig
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> first, *_ = continue_ids(model, [5, 6, 7], Sampling(max_tokens=4, temperature=0.0))
    >>> first == model(torch.tensor([[5, 6, 7]]))[0, -1].argmax().item()
    True
    """
    sequences = Sequences(model, [prompt], [sampling], never)
    for _ in range(sampling.max_tokens):
        (chosen,), logits = sequences.choose()
        if look is not None:
            look(chosen, logits[0])
        if chosen in stops:
            return
        yield chosen
        sequences.append([chosen])


class Sequences:
    """Sequences that are continued together, each of a length of its own.

    Args:
        prompts: of each row, of any lengths up to the context.
        samplings: how the ids of each row are chosen; a row draws with a seed of its own.
        never: ids that are not chosen.

    >>> from groundup.model.settings import ModelConfig
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> sequences = Sequences(model, [[5, 6, 7], [8]], [Sampling(seed=1), Sampling(seed=2)])
    >>> chosen, logits = sequences.choose()
    >>> len(chosen), logits.shape
    (2, torch.Size([2, 320]))
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        never: Sequence[int] = (),
    ) -> None:
        room, weight = model.config.context_length, next(model.parameters())
        for prompt in prompts:
            if not prompt:
                raise SettingsError(
                    "the prompt is empty, and this model has no token that opens a document; give a prompt"
                )
            if len(prompt) > room:
                raise SettingsError(
                    f"the prompt has {len(prompt)} tokens; this model sees at most {room} at once: shorten it"
                )
        self._model, self._samplings, self._device = model, samplings, weight.device
        self._ids, self._held = [list(prompt) for prompt in prompts], [0] * len(prompts)
        self._cache = None
        """None for weights that are cut over ranks, as a rank has only some heads: all is read again."""
        if not isinstance(weight, DTensor):
            self._cache = ContiguousCache.empty(model.config, len(prompts), weight.device, weight.dtype)
        self._generators = [torch.Generator().manual_seed(sampling.seed) for sampling in samplings]
        self._never = torch.tensor(list(never), dtype=torch.long, device=weight.device)

    def choose(self) -> tuple[list[int], Float[Tensor, "B V"]]:
        """The next id of each row, and the logits that they were chosen by. What was not read yet is read first."""
        with evaluating(self._model):
            logits = self._read().index_fill(1, self._never, float("-inf"))
            shares = [probabilities(*row) for row in zip(logits, self._samplings, strict=True)]
            finite = logits.amax(dim=1).isfinite()  # neither NaN nor Inf
            chosen, are_finite = torch.stack((draw(torch.stack(shares), self._generators), finite)).tolist()  # waits
        if not all(are_finite):
            raise DivergedError(
                "the model's scores for the next token are not finite numbers (NaN or Inf), though its weights are: "
                "they are too large to be computed with"
            )
        return chosen, logits

    def append(self, chosen: Sequence[int]) -> None:
        """Continue each row with an id. When the context is full, its earlier half is forgotten."""
        room = self._model.config.context_length
        for number, id in enumerate(chosen):
            self._ids[number].append(id)
            if len(self._ids[number]) > room:
                self._ids[number], self._held[number] = self._ids[number][-(room // 2) :], 0

    def _read(self) -> Float[Tensor, "B V"]:
        """One forward pass over what each row has unread; the scores after its last token."""
        unread = [ids[held:] for ids, held in zip(self._ids, self._held, strict=True)]
        new = [len(ids) for ids in unread]
        filled = torch.tensor([ids + [0] * (max(new) - len(ids)) for ids in unread], device=self._device)
        position = torch.tensor(self._held, device=self._device)[:, None] + torch.arange(max(new), device=self._device)
        position = position.clamp(max=self._model.config.context_length - 1)  # of what fills a row
        if self._cache is None:
            hidden = self._model.hidden(filled, position)
        else:
            hidden = self._model.hidden(filled, position, self._cache.attend(self._held, new))
            self._held = [len(ids) for ids in self._ids]
        last = torch.tensor(new, device=self._device) - 1
        return self._model.logits(hidden[torch.arange(len(new), device=self._device), last])
