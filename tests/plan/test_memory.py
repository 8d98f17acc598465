"""The smallest change makes a training fit, and changes nothing that is decided already."""

import dataclasses

from groundup.model.settings import ModelConfig
from groundup.optim.settings import AdamW, Bfloat16
from groundup.plan.memory import MemoryNeeds, smallest_change


def test_of_a_started_model_nothing_is_to_be_changed_that_its_weights_decide() -> None:
    table = {"vocab_size": 100, "context_length": 192, "d_model": 16, "n_layers": 2, "n_heads": 2}
    rotary, learned = (ModelConfig.from_table({**table, "position": {"kind": kind}}) for kind in ("rotary", "learned"))
    needs = MemoryNeeds(rotary, Bfloat16(), AdamW(), 1, "full", has_start=True)
    half = dataclasses.replace(needs, model=rotary.model_copy(update={"context_length": 96})).bytes()
    assert smallest_change(needs, half) == "set pretrain.micro_batch_rows=1 and model.context_length=96"
    assert smallest_change(needs, half // 10) == "begin with a smaller model (pretrain.start)"  # 64 is no divisor
    needs = dataclasses.replace(needs, model=learned)
    assert smallest_change(needs, half) == "begin with a smaller model (pretrain.start)"


def test_the_smallest_change_fits() -> None:
    model = ModelConfig(vocab_size=1000, context_length=512, d_model=128, n_layers=4)
    needs = MemoryNeeds(model, Bfloat16(), AdamW(), 16)
    for available in (needs.bytes() // 2, needs.bytes() // 12, needs.bytes() // 16):
        change = smallest_change(needs, available)
        words = dict(word.split("=") for word in change.removeprefix("set ").split(" and "))
        recompute = words.pop("pretrain.recompute", "none")
        model_now = model.model_copy(
            update={name.removeprefix("model."): int(n) for name, n in words.items() if "model." in name}
        )
        rows = int(words["pretrain.micro_batch_rows"])
        assert MemoryNeeds(model_now, Bfloat16(), AdamW(), rows, recompute).bytes() <= available
