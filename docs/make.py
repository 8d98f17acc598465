"""Write what is derived from the code: the recipe's JSON Schema, the pages of reference, the pictures of positions, of
a text in tokens, of what ranks have, of the engine's pages and, of a run, the README's.

python docs/make.py [schema|reference|positions|ranks|paging|tokens|report …]        everything, if nothing is named
"""

import itertools
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hooks import lines_of_files_shown
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from playwright.sync_api import sync_playwright
from torch.testing._internal.distributed.fake_pg import FakeStore

from groundup.corpus import sources
from groundup.generation.schedule import Pages, Schedule, Scheduled
from groundup.model.attention import Causal
from groundup.model.position import Position, alibi_slopes, rotary_frequencies
from groundup.model.settings import (
    ALiBi,
    LearnedPosition,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    NoPosition,
    NTKScaling,
    Rotary,
    Sinusoidal,
    YaRNScaling,
)
from groundup.model.transformer import Transformer
from groundup.parallel.apply import apply
from groundup.parallel.ring import own_positions
from groundup.parallel.settings import ParallelSettings
from groundup.parallel.stages import named_weights
from groundup.parallel.world import World
from groundup.recipe import Recipe
from groundup.report.tokens import explain, write_page
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.losses import by_document, next_token
from groundup.train.pieces import piece_of
from groundup.train.ranks import own_rows
from reference import PAGES, json_schema

ROOT = Path(__file__).parents[1]
CORE = r"The core is [\d,]+ lines"


def schema() -> None:
    target = ROOT / "recipes" / "recipe.schema.json"
    target.write_text(json.dumps(json_schema(Recipe), indent=1) + "\n", "utf-8")


def reference() -> None:
    for name, page in PAGES.items():
        (ROOT / "docs" / "reference" / f"{name}.md").write_text(page(), "utf-8")


def tour() -> None:
    """Write how many lines the files of the tour have."""
    page = ROOT / "docs" / "tour.md"
    text = page.read_text("utf-8")
    page.write_text(re.sub(CORE, f"The core is {lines_of_files_shown(text):,} lines", text), "utf-8")


def positions() -> None:
    """What each scheme of position does, drawn from the modules themselves."""
    torch.manual_seed(0)
    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(2, 3, figsize=(12.5, 7), layout="constrained")
    for draw, axis in zip(
        (waves, similarity, rotary_scores, stretched_angles, falling_scores, order_blindness), axes.flat, strict=True
    ):
        draw(axis)
    figure.savefig(ROOT / "docs" / "positions.png", dpi=110)
    pyplot.close(figure)


def waves(axis: Axes) -> None:
    table, _ = Position(ModelConfig(d_model=64, position=Sinusoidal()))(
        torch.zeros(1, 100, 64), torch.arange(100)[None]
    )
    axis.imshow(table[0].T, aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
    axis.set(title="Sinusoidal: the vector of each position", xlabel="position", ylabel="channel")


def similarity(axis: Axes) -> None:
    table = Position(ModelConfig(d_model=64, position=Sinusoidal()))(torch.zeros(1, 400, 64), torch.arange(400)[None])[
        0
    ][0]
    for place, style in ((100, "-"), (200, "--"), (300, ":")):
        axis.plot(range(-90, 91), table[place - 90 : place + 91] @ table[place], style, label=f"around {place}")
    axis.set(
        title="Sinusoidal: a shift looks the same everywhere", xlabel="distance", ylabel="product of two positions"
    )
    axis.legend(frameon=False)


def rotary_scores(axis: Axes) -> None:
    rotary = Position(ModelConfig(n_heads=1, d_head=64, d_model=64))
    query, key = torch.randn(64), torch.randn(64)
    query = query + key  # alike, so that nearness shows

    def at(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        rotated: torch.Tensor = rotary(torch.zeros(1, 1, 1), where[None])[1].rotate(x.expand(1, 1, len(where), 64))
        return rotated[0, 0]

    for start, style in ((0, "-"), (1000, "--"), (5000, ":")):
        distance = torch.arange(200)
        scores = at(key, torch.tensor([start])) @ at(query, start + distance).T
        axis.plot(distance, scores[0], style, label=f"key at {start:,}")
    axis.set(title="Rotary: the score knows the distance alone", xlabel="distance", ylabel="query · key")
    axis.legend(frameon=False)


def stretched_angles(axis: Axes) -> None:
    plain, _ = rotary_frequencies(Rotary(), 64, torch.device("cpu"))
    kinds = {
        "linear": LinearScaling(factor=8.0),
        "NTK": NTKScaling(factor=8.0),
        "Llama 3": Llama3Scaling(factor=8.0, trained_length=2048),
        "YaRN": YaRNScaling(factor=8.0, trained_length=2048),
    }
    for (name, scaling), style in zip(kinds.items(), ("-", "--", "-.", ":"), strict=True):
        scaled, _ = rotary_frequencies(Rotary(scaling=scaling), 64, torch.device("cpu"))
        axis.plot(plain / scaled, style, label=name)
    axis.set(
        title="Rotary: which channels a scaling by 8 slows down",
        xlabel="pair of channels, fast to slow",
        ylabel="times slower",
    )
    axis.legend(frameon=False)


def falling_scores(axis: Axes) -> None:
    distance = torch.arange(200)
    for head, slope in enumerate(alibi_slopes(8, torch.device("cpu")), start=1):
        if head % 2:
            axis.plot(distance, -slope * distance, label=f"head {head} of 8")
    axis.axvline(128, color="grey", linewidth=0.8, linestyle=":")
    axis.text(132, -50, "trained to here:\nthe line just goes on", color="grey")
    axis.set(title="ALiBi: scores fall in a line with distance", xlabel="distance", ylabel="added to the score")
    axis.set_ylim(-100, 2)
    axis.legend(frameon=False, loc="lower left")


def order_blindness(axis: Axes) -> None:
    """How much the last token's attention output moves when the tokens before it are shuffled."""
    kinds = {
        "none": NoPosition(),
        "learned": LearnedPosition(),
        "sinusoidal": Sinusoidal(),
        "rotary": Rotary(),
        "ALiBi": ALiBi(),
    }
    tokens = torch.randint(0, 500, (64, 24))
    shuffled = torch.cat((tokens[:, torch.randperm(23)], tokens[:, -1:]), dim=1)
    for number, position in enumerate(kinds.values()):
        model = Transformer(ModelConfig(vocab_size=500, d_model=64, n_layers=2, position=position)).eval()
        seen: list[dict[str, torch.Tensor]] = [{}, {}]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(10)
            for ids, record in zip((tokens, shuffled), seen, strict=True):
                model.hidden(ids, attend=Causal(), tap=record.__setitem__)
        for layer, colour in ((0, "tab:blue"), (1, "tab:orange")):
            before, after = (record[f"blocks.{layer}.attention"][:, -1] for record in seen)
            moved = (after - before).norm() / before.norm()
            axis.bar(number + 0.4 * layer, moved, 0.4, color=colour, label=f"layer {layer + 1}" if not number else None)
    axis.set_xticks([number + 0.2 for number in range(len(kinds))], list(kinds))
    axis.set(title="None: the first layer is blind to order", ylabel="change when earlier tokens are shuffled")
    axis.set_ylim(0, 2)
    axis.legend(frameon=False)


MODES = {
    "replicate = 4": {"replicate": 4},
    "shard = 4, zero = 3": {"shard": 4},
    "tensor = 4": {"tensor": 4},
    "pipeline = 4": {"pipeline": 4},
    "context = 4": {"context": 4},
    "expert = 4": {"expert": 4},
    "replicate = 2, shard = 2": {"replicate": 2, "shard": 2},
    "shard = 2, tensor = 2": {"shard": 2, "tensor": 2},
    "pipeline = 2, context = 2": {"pipeline": 2, "context": 2},
}
DRAWN = ("blocks.0.attention.query.weight", "blocks.0.attention.out.weight", "blocks.3.feedforward.experts.up.weight")


def ranks() -> None:
    """What each of four ranks has, mode by mode, as the real meshes and parameters say."""
    figure, axes = pyplot.subplots(3, 3, figsize=(13, 9.5), layout="constrained")
    for axis, (title, table) in zip(axes.flat, MODES.items(), strict=True):
        axis.set_title(title, loc="left")
        for rank in range(4):
            draw_rank(axis, rank, *held_by(rank, table))
        axis.set(xlim=(-0.6, 13.4), ylim=(-13.4, 1.2), aspect="equal")
        axis.axis("off")
    figure.savefig(ROOT / "docs" / "ranks.png", dpi=100)


def held_by(rank: int, table: dict[str, int]) -> tuple[list[int], list[int], dict[str, tuple[Any, Any, Any]]]:
    """Rows and positions that a rank learns from, and of each drawn matrix (shape, offset, lengths)."""
    dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
    parallel = ParallelSettings.from_table(table)
    world = World.of(parallel, 4, torch.device("cpu"), torch.float32)
    config = ModelConfig.from_table(
        {"vocab_size": 320, "context_length": 8, "d_model": 32, "n_layers": 4, "n_heads": 4}
        | {"feedforward": {"kind": "experts", "n_experts": 4, "n_active": 1}}
    )

    def make() -> Transformer:
        with torch.device("meta"):
            return Transformer(config)

    model = apply(make, world, next_token, by_document)
    weights = {name: piece_of(weight) for name, weight in named_weights(model) if name in DRAWN}
    rows = own_rows(world, 8, 8 // world.row_ranks).flatten().tolist()
    places = own_positions(8, world.sizes["context"], world.coordinate("context")).tolist()
    dist.destroy_process_group()
    return rows, places, {name: (each.shape, each.offset, each.local.shape) for name, each in weights.items()}


def draw_rank(
    axis: Axes, rank: int, rows: list[int], places: list[int], weights: dict[str, tuple[Any, Any, Any]]
) -> None:
    """A column: the batch, rows down and positions across, and the matrices; what the rank has is dark."""
    left = rank * 3.5
    axis.text(left + 1.25, 0.4, f"rank {rank}", ha="center", fontsize=9)
    for row, place in itertools.product(range(8), range(8)):
        dark = row in rows and place in places
        corner = (left + place * 2.5 / 8, -0.2 - (row + 1) * 2.5 / 8)
        axis.add_patch(Rectangle(corner, 0.28, 0.28, color="#1f77b4" if dark else "#e4e9ee"))
    for number, name in enumerate(DRAWN):
        bottom = -6.2 - number * 3.3
        axis.add_patch(Rectangle((left, bottom), 2.5, 2.5, color="#f1e9df"))
        if name in weights:
            shape, offset, lengths = weights[name]
            if len(shape) == 3:  # experts lie one below the other
                shape, offset, lengths = ((a * b, c) for a, b, c in (shape, (offset[0], shape[1], offset[2]), lengths))
            high, wide = (2.5 * length / whole for length, whole in zip(lengths, shape, strict=True))
            top, begin = (2.5 * first / whole for first, whole in zip(offset, shape, strict=True))
            axis.add_patch(Rectangle((left + begin, bottom + 2.5 - top - high), wide, high, color="#d2691e"))
        if rank == 0:
            layer, part = name.split(".")[1], name.split(".")[-2]
            axis.text(left, bottom + 2.56, f"layer {layer}, {part}", fontsize=7)


ARRIVALS = {0: [([*range(22)], 12), ([*range(100, 105)], 30)], 3: [([*range(16), 50, 51], 14)],
            6: [([*range(200, 230)], 8)], 12: [([*range(100, 104), *[9] * 5], 10)]}  # fmt: skip
"""By step, the requests that come: a prompt, and tokens of the answer."""


def paging() -> None:
    """What a real schedule does with five requests: the tokens that each computes step by step, and who holds which
    page."""
    schedule = Schedule[Scheduled](Pages(count=16, size=8), most_requests=4, most_tokens=14)
    requests: list[Scheduled] = []
    left: dict[Scheduled, int] = {}
    computed: dict[tuple[int, int], tuple[int, bool]] = {}  # request, step → tokens, and whether they are a prompt's
    holders: dict[tuple[int, int], list[int]] = {}  # page, step → requests
    step = 0
    while step == 0 or schedule.running or schedule.waiting or step < max(ARRIVALS):
        for prompt, n in ARRIVALS.get(step, []):
            requests.append(Scheduled([*prompt]))
            left[requests[-1]] = n
            schedule.add(requests[-1])
        works = schedule.plan()
        for number, request in enumerate(requests):
            for page in request.pages:
                holders.setdefault((page, step), []).append(number)
        for work in works:
            request = work.request
            is_prompt = len(work.ids) > 1 or work.end < len(request.ids)
            computed[requests.index(request), step] = (len(work.ids), is_prompt)
            if work.end == len(request.ids):
                request.ids.append(1000 + len(request.ids))
                left[request] -= 1
            schedule.computed(work, min(work.end, len(request.ids) - 1))
            if not left[request]:
                schedule.remove(request)
        step += 1
    draw_paging(step, len(requests), computed, holders)


def draw_paging(
    steps: int,
    n_requests: int,
    computed: dict[tuple[int, int], tuple[int, bool]],
    holders: dict[tuple[int, int], list[int]],
) -> None:
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(11, 7.5), sharex=True, layout="constrained")
    colours = ["#1f77b4", "#d2691e", "#2ca02c", "#9467bd", "#c2185b"]
    for (request, step), (tokens, is_prompt) in computed.items():
        above.add_patch(
            Rectangle((step, request + 0.1), 0.92, 0.8, color=colours[request], alpha=1 if is_prompt else 0.45)
        )
        above.text(step + 0.46, request + 0.5, str(tokens), ha="center", va="center", fontsize=8, color="white")
    for (page, step), held_by in holders.items():
        for part, request in enumerate(held_by):
            high = 0.84 / len(held_by)
            below.add_patch(Rectangle((step, page + 0.08 + part * high), 0.92, high, color=colours[request]))
    names = [f"request {chr(65 + number)}" for number in range(n_requests)]
    above.set_yticks([number + 0.5 for number in range(n_requests)], names)
    above.set(ylim=(n_requests, 0), title="Tokens that each computes in a step: dark for a prompt, pale for an answer")
    used = max(page for page, _ in holders) + 1
    below.set_yticks([page + 0.5 for page in range(used)], [str(page) for page in range(used)])
    below.set(xlim=(0, steps), ylim=(used, 0), xlabel="step", ylabel="page", title="Who holds which page of 8 tokens")
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "docs" / "paging.png", dpi=100)


def tokens() -> None:
    """A sentence in the tokens of the storybook's recipe, learned here."""
    settings = Recipe.load(ROOT / "recipes" / "storybook.toml")
    ((name, path),) = sources.find(settings.corpus, ROOT / "recipes").files
    texts = (document.text for document in sources.read(name, path, settings.corpus))
    learned = Tokenizer.learn(texts, vocab_size=4096)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "tokens.html"
        write_page(explain("storybook", learned, b"The grumbling king found a golden castle."), page)
        photograph(page, "tokens", 1000, '.token:has-text("umbling")')


def report() -> None:
    page = ROOT / "runs" / "storybook" / "report.html"
    if page.is_file():
        photograph(page, "report", 1500)
    else:
        print("no picture of a report: it needs `make demo` before")


def photograph(page: Path, name: str, height: int, pointed_at: str | None = None) -> None:
    """The top of a page as docs/NAME.png, with the mouse somewhere on it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        print(f"no picture of {name}: it needs Chromium")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 900, "height": height})
        tab.goto(page.as_uri())
        if pointed_at:
            tab.hover(pointed_at)
        tab.screenshot(path=ROOT / "docs" / f"{name}.png")
        browser.close()


MAKERS = {
    "schema": schema,
    "reference": reference,
    "tour": tour,
    "ranks": ranks,
    "positions": positions,
    "paging": paging,
    "tokens": tokens,
    "report": report,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or MAKERS:
        MAKERS[name]()
