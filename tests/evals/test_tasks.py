"""Tasks ask what lm-evaluation-harness asks: its recorded requests of whole sets, and those it makes itself."""

import hashlib
import importlib.util
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from harness_tasks import DEFINITIONS, Given, docs, given, our_items, their_tasks

from groundup.errors import SettingsError
from groundup.evals.benchmarks import Files, forms
from groundup.evals.items import (
    Choice,
    Item,
    Likelihood,
    Passage,
    Writing,
    chance_of,
    grade_choice,
    shown,
    with_examples,
)
from groundup.evals.statistics import mean_error
from groundup.evals.tasks import SUITES, TASKS, find_tasks


@pytest.fixture(scope="session")
def files(shared: Path) -> Files:
    return Files(shared / "data" / "evals")


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, Any]:
    """lm-evaluation-harness's tests/testdata: sha256 of all requests of its version-0 tasks, and what its fake model
    got in them."""
    return json.loads((shared / "data/evals/golden/lm-evaluation-harness.json").read_bytes())["files"]


# Version 0 of the harness: every request of a whole set, and what its fake model gets


def shuffled(asks: Sequence[Any]) -> list[Any]:
    asks = list(asks)
    random.Random(42).shuffle(asks)
    return asks


def digest(requests: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(requests, sort_keys=True).encode()).hexdigest()


def fake_grades(asks: Sequence[Choice]) -> Iterator[dict[str, float]]:
    """What becomes of log-likelihoods that are −random(), in the order of the requests."""
    draw = random.Random(42).random
    return (grade_choice(ask, [Likelihood(-draw(), False) for _ in ask.options]) for ask in asks)


def refuse_unequal(golden: dict[str, Any], task: str, asks: Sequence[Choice]) -> None:
    """The requests have the recorded digest, and the fake model's scores and errors are the recorded ones."""
    asks = shuffled(asks)
    assert digest([request for ask in asks for request in ask.requests]) == golden[f"{task}-v0-loglikelihood"]
    graded = list(fake_grades(asks))
    expected = golden[f"{task}-v0-res.json"]["results"][task]
    for theirs, ours in {"acc": "accuracy", "acc_norm": "accuracy_per_character"}.items():
        if theirs in expected:
            values = np.array([each[ours] for each in graded])
            assert values.mean() == expected[theirs]
            assert mean_error(values) == expected[f"{theirs}_stderr"]


def choice(context: str, options: Sequence[str], right: int) -> Choice:
    return Choice((context,) * len(options), tuple(options), (right,))


def test_requests_and_scores_of_mmlu_are_those_recorded_for_all_57_subjects(
    files: Files, golden: dict[str, Any]
) -> None:
    parts = files.open("mmlu").parts
    assert len(parts) == 57
    for part, rows in parts.items():
        asks = [
            choice(
                f"Question: {question}\nChoices:\n"
                + "".join(f"{letter}. {option}\n" for letter, option in zip("ABCD", options, strict=True))
                + "Answer:",
                options,
                "ABCD".index(right),
            )
            for question, *options, right in rows
        ]
        refuse_unequal(golden, f"hendrycksTest-{part.removesuffix('_test')}", asks)


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_requests_and_scores_of_blimp_are_those_recorded_for_all_67_paradigms(
    step: int, files: Files, golden: dict[str, Any]
) -> None:
    parts = files.open("blimp").parts
    assert len(parts) == 67
    for paradigm, records in list(parts.items())[::step]:
        pairs = [(record["sentence_good"], record["sentence_bad"]) for record in records]
        refuse_unequal(golden, f"blimp_{paradigm}", [Choice(("", ""), pair, (0,), delimiter="") for pair in pairs])


@pytest.mark.parametrize(
    ("task", "recorded"),
    {
        "piqa": "piqa",
        "winogrande": "winogrande",
        "winograd": "wsc273",
        "openbookqa": "openbookqa",
        "copa": "copa",
    }.items(),
)
def test_requests_and_scores_are_those_recorded_where_prompts_have_not_changed(
    task: str, recorded: str, files: Files, golden: dict[str, Any]
) -> None:
    asks = [item.ask for item in TASKS[task].items(files)]
    if task in ("winograd", "copa"):  # one space, then
        asks = [replace(ask, options=tuple(option.removeprefix(" ") for option in ask.options)) for ask in asks]
    refuse_unequal(golden, recorded, asks)


def test_requests_and_scores_of_truthfulqa_are_those_recorded(files: Files, golden: dict[str, Any]) -> None:
    both = (TASKS[f"truthfulqa_{each}"] for each in ("mc1", "mc2"))
    one, several = ([with_examples(item, task, []).ask for item in task.items(files)] for task in both)
    true_first = [  # version 0 takes the answers before the first false one for the true ones: not so in two items
        replace(ask, right=tuple(takewhile(lambda place, ask=ask: place in ask.right, range(len(ask.options)))))
        for ask in several
    ]
    asks = [ask for pair in shuffled(list(zip(one, true_first, strict=True))) for ask in pair]
    assert digest([request for ask in asks for request in ask.requests]) == golden["truthfulqa_mc-v0-loglikelihood"]
    graded = list(fake_grades(asks))
    expected = golden["truthfulqa_mc-v0-res.json"]["results"]["truthfulqa_mc"]
    for name, values in {
        "mc1": np.array([each["accuracy"] for each in graded[::2]]),
        "mc2": np.array([each["right_share"] for each in graded[1::2]]),
    }.items():
        assert math.isclose(values.mean(), expected[name], rel_tol=1e-14)
        assert math.isclose(mean_error(values), expected[f"{name}_stderr"], rel_tol=1e-13)


def test_requests_of_gsm8k_are_those_recorded(files: Files, golden: dict[str, Any]) -> None:
    prompts = [item.ask.prompt for item in TASKS["gsm8k"].items(files)]
    assert digest([(prompt, ["\n"]) for prompt in shuffled(prompts)]) == golden["gsm8k-v0-greedy_until"]


def test_texts_of_lambada_are_openais_to_the_byte(files: Files) -> None:
    lines = [
        json.dumps({"text": context + word}) + "\n"
        for [(context, word)] in (item.ask.requests for item in TASKS["lambada"].items(files))
    ]
    original = next(form for form in forms()["lambada"] if form.form == "original")
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == original.sha256


# The same benchmarks in other forms

COUNTS = {
    "wikitext2": 62, "lambada": 5153, "hellaswag": 10042, "piqa": 1838, "winogrande": 1267, "winograd": 273,
    "arc_easy": 2376, "arc_challenge": 1172, "openbookqa": 500, "boolq": 3270, "copa": 100, "mmlu": 14042,
    "truthfulqa_mc1": 817, "truthfulqa_mc2": 817, "blimp": 67000, "cola": 1043, "sst2": 872, "commonsense_qa": 1221,
    "social_iqa": 1954, "gsm8k": 1319, "svamp": 300, "triviaqa": 3000,
}  # fmt: skip
"""Items that the staged files have."""


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow) if task == "blimp" else task for task in COUNTS]
)
def test_every_task_yields_whole_items_from_the_files_at_hand(task: str, files: Files) -> None:
    items = list(TASKS[task].items(files))
    assert len(items) == len({item.id for item in items}) == COUNTS[task]
    for ask in (item.ask for item in items):
        match ask:
            case Choice(contexts=contexts, options=options, right=right):
                assert len(contexts) == len(options) and right and set(right) <= set(range(len(options)))
                assert all(option.strip() for option in options)
            case Writing(prompt=prompt, answers=answers):
                assert prompt.endswith("Answer:") and answers and all(answers)
            case Passage(text=text, original=original):
                assert text.strip() and len(text) <= len(original)


def test_guessing_gets_the_chance_of_each_task_and_more_where_a_form_has_fewer_options(files: Files) -> None:
    for name, task in TASKS.items():
        if task.metrics[0].startswith(("accuracy", "right_share")) and name != "blimp":  # all pairs, and many
            fewer = {"commonsense_qa": 1 / 4, "social_iqa": 1 / 2}
            chance = chance_of(task, list(task.items(files)))
            assert chance == pytest.approx(fewer.get(name, task.chance), abs=5e-4), name


def test_each_category_of_mmlu_has_its_subjects_and_each_subject_one(files: Files) -> None:
    subjects = [subject for each in TASKS["mmlu"].categories.values() for subject in each]
    assert sorted(subjects) == sorted({item.group for item in TASKS["mmlu"].items(files)})
    assert [len(each) for each in TASKS["mmlu"].categories.values()] == [19, 13, 12, 13]


READ_ALIKE = ("lambada", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "boolq", "copa", "mmlu",
              "cola", "sst2", "gsm8k", "triviaqa")  # fmt: skip


@pytest.mark.parametrize("task", READ_ALIKE)
def test_the_files_of_the_hub_ask_the_same(task: str, files: Files) -> None:
    group = {"mmlu": "anatomy"}.get(task)
    staged = [item.ask for item in TASKS[task].items(files) if item.group == group][:20]
    assert [item.ask for item in TASKS[task].items(given(task, docs(task, files)[group]))] == staged


def test_the_authors_own_files_ask_the_same(files: Files) -> None:
    for task in ("arc_easy", "openbookqa"):
        theirs = []
        for doc in docs(task, files)[None]:
            choices = [{"text": text, "label": label} for text, label in zip(*doc["choices"].values(), strict=True)]
            stem = doc.get("question") or doc["question_stem"]
            theirs.append({"question": {"stem": stem, "choices": choices}, "answerKey": doc["answerKey"]})
        found = [item.ask for item in TASKS[task].items(Given(**{task: ("original", theirs)}))]
        assert found == [item.ask for item in TASKS[task].items(files)][:20]
    trivia = [
        {"Question": doc["question"], "Answer": {"Aliases": doc["answer"]["aliases"]}}
        for doc in docs("triviaqa", files)[None]
    ]
    found = [item.ask for item in TASKS["triviaqa"].items(Given(triviaqa=("original", trivia)))]
    assert found == [item.ask for item in TASKS["triviaqa"].items(files)][:20]


def test_winograd_schemas_are_read_from_their_authors_xml() -> None:
    def schema(before: str, pronoun: str, after: str, *names: str, right: str) -> ElementTree.Element:
        answers = "".join(f"<answer>\n{name} </answer>" for name in names)
        return ElementTree.fromstring(
            f"<schema><text><txt1>{before}</txt1><pron>\n {pronoun} </pron><txt2>{after}</txt2></text>"
            f"<answers>{answers}</answers><correctAnswer>{right}</correctAnswer></schema>"
        )

    schemas = [
        schema(
            "The trophy doesn't fit into the  case because",
            "it",
            "is too\nsmall.",
            "The trophy",
            "The case",
            right=" B. ",
        ),
        schema("Ann hit Jane.", "Her", "arm hurt.", "Ann", "Jane", right="A"),
        schema("It rained.", "They", "left.", "The men", "The cats", right="A"),
    ]
    asks = [item.ask for item in TASKS["winograd"].items(Given(winograd=("original", schemas)))]
    assert asks[0].contexts[1] == "The trophy doesn't fit into the case because the case"
    assert asks[0].right == (1,) and asks[0].options == (" is too small.",) * 2
    assert asks[1].contexts == ("Ann hit Jane. Ann's", "Ann hit Jane. Jane's")
    assert asks[2].contexts == ("It rained. The men", "It rained. The cats")


def test_headings_in_brackets_are_left_out_of_hellaswag() -> None:
    record = {
        "activity_label": "Cooking", "ctx_a": "How to cook [header] It boils [title] Wait.", "ctx_b": "then he ATE",
        "endings": [" it [step] up.", "b", "c", "d"], "label": "0",
    }  # fmt: skip
    [item] = TASKS["hellaswag"].items(Given(hellaswag=("original", [record])))
    assert item.ask.contexts[0] == "Cooking: How to cook It boils. Wait. Then he ate"
    assert item.ask.options[0] == "it up."


def test_pages_of_wikitext_are_read_as_people_write_them() -> None:
    first = [" = A = \n", ' Ten @-@ year : ( x ) , " so " . \n', " = = Part = = \n"]
    second = [" = B = \n", " It 's 5 @,@ 000 . \n"]
    rows = [{"text": line} for line in [" \n", *first, *second]]
    asks = [item.ask for item in TASKS["wikitext2"].items(Given(wikitext2=("hub", rows)))]
    assert [ask.text for ask in asks] == [' = A =\nTen-year: (x), "so".\n== Part == ', " = B =\nIt's 5,000.\n"]
    assert [ask.original for ask in asks] == ["".join(first).removesuffix("\n"), "".join(second)]


# Today's harness, where it is installed


@pytest.mark.slow
@pytest.mark.parametrize(("task", "shots"), [*((task, 0) for task in DEFINITIONS), ("mmlu", 5), ("gsm8k", 5)])
def test_todays_requests_are_those_of_the_harness(task: str, shots: int, files: Files, tmp_path: Path) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm_eval, the package of lm-evaluation-harness, is not installed")
    part = {"mmlu": "anatomy", "blimp": "adjunct_island"}.get(task)
    records = {part: docs(task, files)[part]}
    [theirs] = their_tasks(task, records, shots, files, tmp_path).values()
    theirs.build_all_requests(limit=20, rank=0, world_size=1)
    assert own_requests(task, records, shots, files) == [instance.args for instance in theirs.instances]


def own_requests(
    task: str, records: dict[str | None, list[dict[str, Any]]], shots: int, files: Files
) -> list[tuple[Any, ...]]:
    """Our requests for records of the hub's, as the harness writes requests."""
    [part] = records
    items = our_items(task, records, files)
    examples = TASKS[task].examples
    shown_first = [each for each in examples(files) if each.group == part] if shots and examples else []
    requests: list[tuple[Any, ...]] = []
    for item in items:
        match with_examples(item, TASKS[task], shown_first[:shots]).ask:
            case Choice(requests=pairs):
                requests += pairs
            case Writing(prompt=prompt, stop=stop):
                requests.append((prompt, {"until": list(stop), "do_sample": False, "temperature": 0.0}))
            case Passage(text=text):
                requests.append((text,))
    return requests


# Answers that are written


@pytest.mark.parametrize(
    ("texts", "strict", "flexible"),
    [
        ([" 9 * 2 = 18\n#### 18"], 1, 1),
        ([" It is $18.00, or 18."], 0, 1),
        ([" #### 1,8."], 1, 1),
        ([" #### 19 or 18"], 0, 1),
        ([" nothing"], 0, 0),
        (["#### 18", "#### 17", "so 18\n#### 18"], 1, 1),
        (["#### 17", "#### 17", "#### 18"], 0, 0),
        (["nothing", "nothing", "#### 18"], 1, 1),
    ],
)
def test_the_number_that_most_answers_come_to_is_the_answer(texts: list[str], strict: int, flexible: int) -> None:
    check = TASKS["gsm8k"].check
    assert check is not None
    values = check(Item("0", Writing("", ("18",))), texts)
    assert values == {"exact_match": strict, "exact_match_flexible": flexible}


def test_answers_of_triviaqa_are_compared_without_case_and_punctuation() -> None:
    check = TASKS["triviaqa"].check
    assert check is not None
    item = Item("0", Writing("", ("Onion", "Allium cepa")))
    assert check(item, [" onion"]) == check(item, ["allium-cepa"]) | {"exact_match": 0.0} | check(
        item, ["Allium cepa!"]
    )
    assert check(item, ["the onion"]) == {"exact_match": 0.0}


def test_examples_of_gsm8k_end_with_their_solution(files: Files) -> None:
    examples = TASKS["gsm8k"].examples
    assert examples is not None
    assert shown(next(examples(files))).endswith("April and May.\n#### 72")


# Names


def test_a_name_that_is_unknown_is_answered_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="no task 'hellswag'; did you mean hellaswag?"):
        find_tasks(["hellswag"])


def test_a_suite_is_its_tasks_and_none_is_twice() -> None:
    assert list(find_tasks(["piqa", "core"])) == ["piqa", *(name for name in SUITES["core"] if name != "piqa")]
