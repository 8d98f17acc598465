"""Engine: continues a sequence of ids. It knows nothing of text."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from groundup.errors import DivergedError, SettingsError
from groundup.generation.cache import ContiguousCache
from groundup.generation.sample import sample
from groundup.generation.settings import Sampling
from groundup.model.transformer import Transformer

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
        model: is in `eval()` meanwhile.
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
    room = model.config.context_length
    if not prompt:
        raise SettingsError("the prompt is empty, and this model has no token that opens a document; give a prompt")
    if len(prompt) > room:
        raise SettingsError(f"the prompt has {len(prompt)} tokens; this model sees at most {room} at once: shorten it")
    generator = torch.Generator().manual_seed(sampling.seed)
    weight = next(model.parameters())
    held, unread = list(prompt), list(prompt)
    cache = ContiguousCache.empty(model.config, 1, weight.device, weight.dtype)
    was_training = model.training
    model.eval()
    try:
        for _ in range(sampling.max_tokens):
            if cache.length + len(unread) > room:
                held = held[-(room // 2) :]
                unread, cache.length = list(held), 0
            with torch.no_grad():
                position = torch.arange(cache.length, cache.length + len(unread), device=weight.device)[None]
                tokens = torch.tensor([unread], device=weight.device)
                hidden = model.hidden(tokens, position, cache)
                logits = model.logits(hidden[0, -1])
                logits[list(never)] = float("-inf")
                if not torch.isfinite(logits.max()):  # of NaN and Inf this is what they are
                    raise DivergedError(
                        "the model's scores for the next token are not finite numbers (NaN or Inf), though its weights "
                        "are: they are too large to be computed with"
                    )
            cache.length += len(unread)
            chosen = sample(logits, sampling, generator)
            if look is not None:
                look(chosen, logits)
            if chosen in stops:
                return
            yield chosen
            held.append(chosen)
            unread = [chosen]
    finally:
        model.train(was_training)
