"""What `rehearse` says of ranks that do not exist, beside ranks that do."""

import subprocess
import sys
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from groundup.model.count import count
from groundup.model.presets import PRESETS
from groundup.model.settings import ModelConfig
from groundup.optim.precision import weight_dtype
from groundup.optim.settings import Bfloat16, Float32, Precision
from groundup.parallel.settings import ParallelSettings
from groundup.parallel.world import World
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import set_up_ranks
from groundup.tools.recording import Collective, Recorder
from groundup.tools.rehearse import RankKind, Rehearsal, Stepper, bubble, rehearse, remarks, zero_terms

MODEL = {
    "vocab_size": 96,
    "context_length": 32,
    "d_model": 32,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_ff": 48,
}
EXPERTS = {"kind": "experts", "n_experts": 4, "n_active": 2}


def config(**changes: Any) -> ModelConfig:
    return ModelConfig.from_table(MODEL | changes)


def training(precision: Precision, **changes: Any) -> PretrainSettings:
    table = {"batch_tokens": 16 * 32, "micro_batch_rows": 2, "device": "cpu"} | changes
    return PretrainSettings.from_table(table).model_copy(update={"precision": precision})


LAYOUTS: dict[int, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    2: {
        "zero 0": ({"replicate": 2}, {}),
        "zero 1": ({"shard": 2, "zero": 1}, {}),
        "zero 2": ({"shard": 2, "zero": 2}, {}),
        "zero 3": ({"shard": 2}, {}),
        "context": ({"context": 2}, {}),
        "pipeline": ({"pipeline": 2}, {}),
        "expert": ({"expert": 2}, {"feedforward": EXPERTS}),
    },
    4: {
        "zero 0": ({"replicate": 4}, {}),
        "zero 1": ({"shard": 4, "zero": 1}, {}),
        "zero 2": ({"shard": 4, "zero": 2}, {}),
        "zero 3": ({"shard": 4}, {}),
        "tensor × shard": ({"tensor": 2, "shard": 2}, {}),
        "replicate × shard": ({"replicate": 2, "shard": 2}, {}),
        "odd": ({"tensor": 4}, {"n_heads": 6, "n_kv_heads": 3, "d_head": 8, "d_ff": 50, "vocab_size": 97}),
        "interleaved": ({"pipeline": 2, "shard": 2, "schedule": {"kind": "interleaved"}}, {}),
    },
}
PRECISIONS: tuple[Precision, ...] = (Float32(), Bfloat16())
Measured = dict[str, tuple[Counter[Collective], dict[str, int]]]


def _measure(rank: int, ranks: int, folder: str) -> None:
    """Take two steps of every layout as one of real processes, and write down what the second exchanges and leaves."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=120))
    measured: Measured = {}
    for name, (parallel, changes) in LAYOUTS[ranks].items():
        for precision in PRECISIONS:
            settings, model = training(precision), config(**changes)
            layout = ParallelSettings.from_table(parallel)
            world = World.of(layout, ranks, torch.device("cpu"), weight_dtype(precision), settings.micro_batch_rows)
            stepper = Stepper(set_up_ranks(model, settings, world), settings)
            ids = torch.zeros(16 // world.row_ranks, 32 // world.sizes["context"], dtype=torch.long)
            recorder = Recorder(world.sizes)
            with recorder.watching():
                stepper.book(recorder)
                for _ in range(2):
                    stepper.step(recorder, ids)
                measured[f"{name} {precision.kind}"] = recorder.collectives, recorder.alive()
    torch.save(measured, f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=LAYOUTS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[Measured]]:
    """Number of processes, and what each measured."""
    ranks: int = request.param
    folder = tmp_path_factory.mktemp("real")
    started = [subprocess.Popen([sys.executable, __file__, str(rank), str(ranks), folder]) for rank in range(ranks)]
    assert [process.wait() for process in started] == [0] * ranks
    return ranks, [torch.load(folder / str(rank), weights_only=False) for rank in range(ranks)]


def _rehearsed(ranks: int, name: str, precision: Precision) -> Rehearsal:
    parallel, changes = LAYOUTS[ranks][name]
    return rehearse(config(**changes), training(precision), ParallelSettings.from_table(parallel), ranks)


def _steps(kind: RankKind) -> Counter[Collective]:
    return Counter({each: round(step) for each, _, step in kind.collectives if step})


@pytest.mark.slow
def test_real_ranks_exchange_what_was_rehearsed_and_hold_as_much(real: tuple[int, list[Measured]]) -> None:
    ranks, measured = real
    for name in LAYOUTS[ranks]:
        for precision in PRECISIONS:
            for kind in _rehearsed(ranks, name, precision).kinds:
                collectives, held = measured[kind.rank][f"{name} {precision.kind}"]
                if name == "expert":  # where tokens really go differs: half of them to each of two ranks
                    collectives = _as_if_even([each[f"{name} {precision.kind}"][0] for each in measured])
                assert _steps(kind) == collectives, (name, precision.kind)
                assert kind.kept_bytes == {what: held[what] for what in kind.kept_bytes}, (name, precision.kind)
                assert not held.get("gathered weights"), "between steps only what is cut stays"


def _as_if_even(of_ranks: list[Counter[Collective]]) -> Counter[Collective]:
    """The mean over ranks of what is sent to experts, in which nothing is lost; all else as the first rank has it."""
    even: Counter[Collective] = Counter()
    for each, number in of_ranks[0].items():
        if each.kind != "all-to-all" or each.dtype == "int64":
            even[each] += number
    sent = [(each, n) for one in of_ranks for each, n in one.items() if each.kind == "all-to-all"]
    floats = [(each, n) for each, n in sent if each.dtype != "int64"]
    count = sum(n for _, n in floats) // len(of_ranks)
    mean = sum(each.elements * n for each, n in floats) / len(of_ranks) / count
    first = floats[0][0]
    even[Collective(first.axis, first.ranks, first.kind, first.dtype, round(mean))] += count
    return even


def test_the_terms_of_the_zero_paper_give_its_first_figure() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 B parameters, 64 ranks; GB."""
    whole, share = 7_500_000_000, 7_500_000_000 / 64
    terms = [zero_terms(whole, 1, 3), *(zero_terms(round(share), 64, zero) for zero in (1, 2, 3))]
    assert [round(each / 1e9, 1) for each in terms] == [120.0, 31.4, 16.6, 1.9]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_volumes_of_zero_are_those_of_its_paper(zero: int) -> None:
    """2Ψ, 2Ψ and 3Ψ elements a micro-batch by the ring's formula (section 7). What stands outside of blocks is gathered
    twice in any case; and with ZeRO 1 gradients are added up once a step, of what is outside of blocks in two parts."""
    [kind] = rehearse(config(), training(Float32()), ParallelSettings(shard=4, zero=zero), 4).kinds  # type: ignore[arg-type]
    micro_batches, share, whole = 2, (4 - 1) / 4, 4 * kind.parameters
    outside = 96 * 32 + 32  # embedding and last norm
    moved: Counter[str] = Counter()
    for each, _, step in kind.collectives:
        if each.elements >= 1024:
            moved[each.kind] += round(each.moved * step)
    gathered = 2 * whole if zero == 3 else whole + outside
    reduced = micro_batches * whole if zero > 1 else whole + outside
    assert moved["all-gather"] == pytest.approx(micro_batches * share * gathered, rel=0.001)
    assert moved["reduce-scatter"] == pytest.approx(share * reduced, rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_tensor_ranks_exchange_what_sequence_parallelism_asks_for(recompute: str) -> None:
    """Korthikanti et al. 2022, section 4.2.2: in each layer two all-gathers and two reduce-scatters forward, as many
    backward; recomputation does the forward ones again, but for the last reduce-scatter, which nothing reads. At the
    end of the stack one more pair."""
    layers = 4
    settings = training(Float32(), recompute=recompute)
    [kind] = rehearse(config(), settings, ParallelSettings(tensor=2), 2).kinds
    hidden = 2 * 32 * 32  # rows × positions × width of a micro-batch
    often = {each.kind: n for each, n, _ in kind.collectives if each.axis == "tensor" and each.elements == hidden}
    again = layers if recompute == "full" else 0
    assert (often["all-gather"], often["reduce-scatter"]) == (4 * layers + 1 + 2 * again, 4 * layers + 1 + again)


def test_bubbles_are_those_of_the_formulas() -> None:
    """(p − 1) / (m + p − 1), and with v stages a rank (p − 1) / (v m + p − 1): Narayanan et al. 2021, section 2.2."""
    kinds = ("gpipe", "1f1b", "interleaved", "zero_bubble")
    tables = [{"pipeline": 4, "schedule": {"kind": kind}} for kind in kinds]
    gpipe, alternating, interleaved, zero_bubble = (bubble(ParallelSettings.from_table(each), 8) for each in tables)
    assert gpipe == alternating == 3 / 11
    assert interleaved == pytest.approx(3 / 19)
    assert zero_bubble < interleaved


def test_what_does_not_divide_is_named_with_the_nearest_that_does() -> None:
    odd = config(n_heads=6, n_kv_heads=3, d_head=8, d_ff=50, vocab_size=97)
    parallel = ParallelSettings(tensor=4)
    told = "\n".join(remarks(odd, training(Float32()), parallel, parallel.sizes(4)))
    for words in ("model.n_heads = 6", "model.n_kv_heads = 3", "model.d_ff = 50", "vocab_size = 97", "96, 100"):
        assert words in told
    assert not remarks(config(), training(Float32()), parallel, ParallelSettings(tensor=2).sizes(2))


PUBLISHED = {
    "llama3-8b": (64, {"shard": 64}, 1),
    "llama3-70b": (256, {"shard": 32, "tensor": 8}, 1),
    "gpt3-175b": (1024, {"shard": 8, "tensor": 8, "pipeline": 16}, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_models_are_rehearsed_whole(preset: str) -> None:
    ranks, parallel, rows = PUBLISHED[preset]
    given = PRESETS[preset]
    length = given.model.context_length
    settings = training(Bfloat16(), batch_tokens=1024 * length, micro_batch_rows=rows, recompute="full")
    rehearsal = rehearse(given.model, settings, ParallelSettings.from_table(parallel), ranks)
    assert rehearsal.parameters == (given.parameters or sum(count(given.model).parameters.values()))
    for kind in rehearsal.kinds:
        assert kind.kept_bytes["optimizer state"] == pytest.approx(2 * kind.kept_bytes["weights"], rel=1e-4)
        assert 0 < kind.total_bytes < 80e9


if __name__ == "__main__":
    _measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
