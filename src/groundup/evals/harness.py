"""lm-evaluation-harness: its tasks, asked of our models through the engine. Needs the extra `groundup[lm-eval]`."""

import importlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from groundup.errors import SettingsError
from groundup.evals.ask import Answered, Examinee
from groundup.evals.items import Choice, Item, Passage, Writing
from groundup.generation.settings import Sampling

MOST_TOKENS = 256
"""Of an answer, where a task does not say."""


def harness_model(examinee: Examinee) -> Any:
    """The examinee as an `LM` of lm-evaluation-harness, for its `simple_evaluate`.

    Raises:
        SettingsError: the library is not there.
    """
    library = _library("lm_eval.api.model")

    class HarnessModel(library.LM):  # type: ignore[misc, name-defined]
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            pairs = [request.args for request in requests]
            asked = [Choice((context,), (continuation,), (0,), delimiter="") for context, continuation in pairs]
            found = (answered.likelihoods[0] for answered in _in_order(examinee, asked))
            return [(each.logprob, each.is_greedy) for each in found]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            asked = [Passage(request.args[0], request.args[0]) for request in requests]
            return [sum(each.logprob for each in answered.likelihoods) for answered in _in_order(examinee, asked)]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            texts = dict[int, str]()
            alike = defaultdict[Sampling, list[tuple[int, Writing]]](list)
            for number, request in enumerate(requests):
                prompt, how = request.args
                until = how.get("until") or ()
                stop = (until,) if isinstance(until, str) else tuple(until)
                heat = how.get("temperature", 1.0) if how.get("do_sample") else 0.0
                sampling = Sampling(temperature=heat, top_p=how.get("top_p"), top_k=how.get("top_k"))
                most = how.get("max_gen_toks", MOST_TOKENS)
                alike[sampling].append((number, Writing(prompt, (), tuple(filter(None, stop)), max_tokens=most)))
            for sampling, asked in alike.items():
                answers = _in_order(examinee, [each for _, each in asked], sampling)
                texts |= {number: each.texts[0] for (number, _), each in zip(asked, answers, strict=True)}
            return [texts[number] for number in range(len(requests))]

    return HarnessModel()


def _in_order(
    examinee: Examinee, asked: Sequence[Passage | Choice | Writing], sampling: Sampling | None = None
) -> list[Answered]:
    items = [Item(str(number), ask) for number, ask in enumerate(asked)]
    answers = {answered.item.id: answered for answered in examinee.answers(items, sampling=sampling)}
    return [answers[item.id] for item in items]


def harness_results(
    examinee: Examinee, tasks: Sequence[str], limit: int | None, shots: int | None
) -> list[tuple[str, str, float, float | None]]:
    """Run tasks of the library: (task, metric, value, standard error) of each.

    Args:
        tasks: their names there; their data is read as the library does, from the Hugging Face hub or its cache.
        limit: items of each.
        shots: examples before each question; as its task says if not given.

    Raises:
        SettingsError: the library is not there, or a task that it does not know.
    """
    evaluator, managing = _library("lm_eval.evaluator"), _library("lm_eval.tasks")
    manager = managing.TaskManager()
    if unknown := [name for name in tasks if not manager.match_tasks([name])]:
        raise SettingsError(f"lm-evaluation-harness has no task {unknown[0]}; `lm_eval ls tasks` lists them")
    found = evaluator.simple_evaluate(
        model=harness_model(examinee), tasks=list(tasks), limit=limit, num_fewshot=shots, bootstrap_iters=1000
    )
    rows = []
    for task, values in found["results"].items():
        for name, value in values.items():
            metric, _, kind = name.partition(",")
            if isinstance(value, float | int) and "_stderr" not in metric:
                error = values.get(f"{metric}_stderr,{kind}")
                rows.append((task, metric, float(value), error if isinstance(error, float) else None))
    return rows


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(
            f"--engine lm-eval needs lm-evaluation-harness ({error}): pip install 'groundup[lm-eval]'"
        ) from None
