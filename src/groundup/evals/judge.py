"""Judge: another model says which of two answers is better, through any OpenAI-compatible address.

It is asked twice, with the answers exchanged, as models favour a place (Zheng et al. 2023,
arXiv:2306.05685, section 3.3).
"""

import json
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import numpy as np

from groundup.errors import DataError, ResourceError, SettingsError
from groundup.evals.statistics import bootstrap, mcnemar
from groundup.files import Progress, no_progress

ASK = """Compare two answers to the same request. Judge whether they are helpful, right, relevant and clear; neither \
their order nor their length is a reason. Explain in a few sentences, then end with [[A]] if answer A is better, [[B]] \
if answer B is better, or [[C]] if they are equally good.

[Request]
{prompt}

[Answer A]
{first}
[End of answer A]

[Answer B]
{second}
[End of answer B]"""
"""Shorter than the request of MT-bench (ibid., figure 5), and with its verdicts."""

ATTEMPTS = 4
"""How often a busy judge is asked, after 1, 2 and 4 seconds."""


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> None:
        """Goes nowhere else: the key is for this address."""


@dataclass(frozen=True)
class Judge:
    """A model behind an address such as http://localhost:8000/v1."""

    address: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise SettingsError("the key of the judge is no line of printable ASCII: look at its file")

    def ask(self, request: str) -> str:
        """Its answer to a message.

        Raises:
            ResourceError: it cannot be reached, or stays busy.
            SettingsError: it refuses the key, or there is no such address or model.
            DataError: it answers something else than a completion.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": request}], "temperature": 0}
        for attempt in range(ATTEMPTS):
            try:
                return _content(self._post(json.dumps(body).encode()), self.address)
            except urllib.error.HTTPError as error:
                with error:
                    said = re.sub(r"\s+", " ", error.read(2000).decode("utf-8", "replace")).strip()[:300]
                if error.code in (429, 500, 502, 503, 504) and attempt + 1 < ATTEMPTS:
                    time.sleep(2**attempt)
                    continue
                raise self._refused(error.code, said) from None
            except ValueError as error:
                proper = "it should be like http://localhost:8000/v1"
                raise SettingsError(f"{self.address} is no address of a judge ({error}): {proper}") from None
            except (OSError, HTTPException) as error:
                raise ResourceError(f"the judge at {self.address} does not answer: {error}; is it running?") from None
        raise AssertionError("the last attempt returns or raises")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        url = self.address.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        request = urllib.request.Request(url, body, headers)
        if request.type not in ("http", "https"):
            raise ValueError(f"not over {request.type}")
        with urllib.request.build_opener(_Stay).open(request, timeout=self.timeout_seconds) as answer:
            return bytes(answer.read())

    def _refused(self, code: int, said: str) -> ResourceError | SettingsError:
        said = said.replace(self.key, "…") if self.key else said
        if code in (401, 403):
            return SettingsError(
                f"the judge at {self.address} refuses the key ({code} {said}): give it with --key-file"
            )
        if code in (429, 500, 502, 503, 504):
            return ResourceError(f"the judge at {self.address} stays busy ({code} {said}): try again later")
        return SettingsError(
            f"the judge at {self.address} refuses to answer as {self.model} ({code} {said}): look at address and model"
        )


def _content(answer: bytes, address: str) -> str:
    try:
        return str(json.loads(answer)["choices"][0]["message"]["content"] or "")
    except (ValueError, LookupError, TypeError):
        raise DataError(f"{address} answers no chat completion, but {answer[:200]!r}") from None


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, and which of them the judge preferred when A, and when B, came first."""

    prompt: str
    answers: tuple[str, str]
    verdicts: tuple[str | None, str | None] = (None, None)
    """"A", "B" or "tie" each; None where it could not be read."""

    @property
    def winner(self) -> str | None:
        """What both orders say; "tie" where they differ; None where one could not be read."""
        first, second = self.verdicts
        return None if None in self.verdicts else first if first == second else "tie"


@dataclass(frozen=True)
class Judgement:
    """What a judge says of two models."""

    pairs: int
    wins: tuple[int, int]
    """Pairs that A, and B, won in both orders."""
    ties: int
    """Where the orders differ among them."""
    unreadable: int
    """Pairs with a verdict that could not be read; they count nowhere else."""
    agreement: float | None
    """Share of pairs whose two orders say the same."""
    first_preferred: float | None
    """Share of the verdicts for one of the answers that were for the one that came first; 0.5 without a bias."""
    share: float | None
    """Of A: wins and half of the ties."""
    interval: tuple[float, float] | None
    """95 % interval of the share, by resampling pairs."""
    p: float
    """Of as many wins more, either way, were both equally good (McNemar's exact test)."""


def judge_pairs(judge: Judge, pairs: Sequence[Pair], at_once: int = 4, progress: Progress = no_progress) -> list[Pair]:
    """The pairs with verdicts; raises as `Judge.ask` does."""

    def verdicts(pair: Pair) -> Pair:
        first = _verdict(judge.ask(ASK.format(prompt=pair.prompt, first=pair.answers[0], second=pair.answers[1])), "AB")
        swapped = _verdict(
            judge.ask(ASK.format(prompt=pair.prompt, first=pair.answers[1], second=pair.answers[0])), "BA"
        )
        return Pair(pair.prompt, pair.answers, (first, swapped))

    judged = []
    with ThreadPoolExecutor(at_once) as pool:
        for pair in pool.map(verdicts, pairs):
            judged.append(pair)
            progress(len(judged), len(pairs), "pairs")
    return judged


def _verdict(answer: str, places: str) -> str | None:
    found = re.findall(r"\[\[([ABC])\]\]", answer)
    return {"A": places[0], "B": places[1], "C": "tie"}[found[-1]] if found else None


def judgement(pairs: Sequence[Pair]) -> Judgement:
    """Count verdicts."""
    readable = [pair for pair in pairs if pair.winner]
    wins = Counter(pair.winner for pair in readable)
    points = np.array([[{"A": 1.0, "B": 0.0}.get(str(pair.winner), 0.5)] for pair in readable])
    firsts = [verdict == first for pair in pairs for verdict, first in zip(pair.verdicts, "AB", strict=True)
              if verdict in ("A", "B")]  # fmt: skip
    same = sum(pair.verdicts[0] == pair.verdicts[1] for pair in readable)
    return Judgement(
        pairs=len(pairs),
        wins=(wins["A"], wins["B"]),
        ties=wins["tie"],
        unreadable=len(pairs) - len(readable),
        agreement=same / len(readable) if readable else None,
        first_preferred=sum(firsts) / len(firsts) if firsts else None,
        share=float(points.mean()) if readable else None,
        interval=bootstrap(points, lambda drawn: float(drawn.mean()))[1] if len(readable) > 1 else None,
        p=mcnemar(wins["A"], wins["B"]),
    )
