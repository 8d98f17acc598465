"""Can a run be trusted? What was checked and holds, what asks for a second look, and what nobody looked at."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from groundup.report.facts import Run
from groundup.words import plural

FLAT = 0.005
"""A rise of validation by less than this share does not count as one."""
FEW_DOCUMENTS = 30
"""From fewer test documents, the standard error is rough itself."""


@dataclass(frozen=True)
class Verdict:
    """One line about trust; what stands between pairs of asterisks is bold."""

    kind: Literal["ok", "warning", "open"]
    text: str


def verdicts(run: Run) -> list[Verdict]:
    cut = run.manifests["corpus"].settings["max_document_bytes"]
    return [
        _chain(run),
        _held_out(run),
        _standard_error(run),
        overfitting(run),
        _interruptions(run),
        _bad_steps(run),
        Verdict("open", "**One training seed**: how far another one would move the number was not measured."),
        Verdict(
            "open",
            "**Near duplicates** were not looked for, nor passages that documents share: a test document may resemble "
            f"a training document. Parts of one document longer than {cut:,} bytes may lie on both sides.",
        ),
        Verdict(
            "open", "**Whether what it writes is true, fair or harmless** was not measured. Expect that it is not."
        ),
    ]


def _chain(run: Run) -> Verdict:
    broken = [
        f"{name} was made from another {given}"
        for name, manifest in run.manifests.items()
        for given, digest in manifest.inputs.items()
        if given in run.manifests and run.manifests[given].digest != digest
    ]
    if broken:
        return Verdict("warning", f"**The chain does not hold**: {'; '.join(broken)}. Build again with --replace.")
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return Verdict(
        "ok",
        "**The chain holds**: every byte of every stage has the digest that was recorded, and each stage was made from "
        f"the ones that are here. Checked when this page was written, {now} UTC.",
    )


def _held_out(run: Run) -> Verdict:
    documents = plural(run.test["documents"], "document")
    duplicates = run.corpus["dropped"].get("exact duplicate", 0)
    removed = f"{plural(duplicates, 'exact duplicate')} dropped" if duplicates else "there was no exact duplicate"
    start = run.manifests["model"].inputs.get("start")
    if start is not None:
        return Verdict(
            "warning",
            f"**It began with the weights of another model** ({start[:12]}), which may have been trained on the test "
            f"documents: {documents}, none of them, letter for letter, among those that it was trained on here: "
            f"{removed}.",
        )
    return Verdict(
        "ok",
        f"**Tested on text that it was not trained on**: {documents}, set aside by the digest of their text before "
        "anything was learned, and read once, at the end. Letter for letter, none is among the training documents: "
        f"{removed}.",
    )


def _standard_error(run: Run) -> Verdict:
    bits, error, documents = (run.test[key] for key in ("bits_per_byte", "standard_error", "documents"))
    if error is None:
        return Verdict("warning", "**One test document** gives no standard error: the number may be luck. Add text.")
    range_of_others = (
        f"**Standard error {error:.3f}**: with other documents of the same kind the number would mostly lie between "
        f"{bits - 2 * error:.2f} and {bits + 2 * error:.2f}."
    )
    if documents < FEW_DOCUMENTS:
        return Verdict("warning", f"{range_of_others} From {documents} documents, this error is rough itself.")
    return Verdict("ok", range_of_others)


def overfitting(run: Run) -> Verdict:
    """Whether validation says that the model began to memorise the training text."""
    if len(run.validations) < 2:
        return Verdict("open", "**Overfitting**: validation was measured less than twice, so its course is not known.")
    bits = [line["validation_bits_per_byte"] for line in run.validations]
    lowest = min(range(len(bits)), key=lambda i: bits[i])
    if bits[-1] > bits[lowest] * (1 + FLAT):
        return Verdict(
            "warning",
            f"**Overfitting**: validation was lowest at step {run.validations[lowest]['step']:,} "
            f"({bits[lowest]:.3f} bits per byte) and rose to {bits[-1]:.3f} by the end. Fewer steps, or more text, "
            "would serve better.",
        )
    course = "was still falling at the end" if bits[-2] > bits[-1] * (1 + FLAT) else "was level at the end"
    went = "fell" if bits[-1] < bits[0] else "went"
    return Verdict(
        "ok",
        f"**No overfitting**: validation {went} from {bits[0]:.3f} to {bits[-1]:.3f} bits per byte and {course}.",
    )


def _interruptions(run: Run) -> Verdict:
    kinds = [event.get("event") for event in run.events]
    refused = [str(event.get("checkpoint")) for event in run.events if event.get("event") == "checkpoint refused"]
    if refused:
        return Verdict(
            "warning",
            f"**A checkpoint was refused** ({', '.join(refused)}): training went on from an older one. Check the files "
            "of that disk; what happened during training is below.",
        )
    if not kinds:
        return Verdict("open", "**The log of events is gone**: whether training was interrupted is not known.")
    changes = changed_settings(run.events)
    if changes:
        listed = "; ".join(f"{name} {old} → {new} from step {step:,} on" for step, name, old, new in changes)
        return Verdict(
            "warning",
            f"**Settings were changed while it trained**: {listed}. One run with these settings from the beginning "
            "would give other numbers.",
        )
    resumed = kinds.count("resumed")
    if resumed:
        threads = list(dict.fromkeys(str(event["threads"]) for event in run.events if "threads" in event))
        otherwise = f" but for the last digits: it had {' and then '.join(threads)} threads" if len(threads) > 1 else ""
        return Verdict(
            "ok",
            f"**Interrupted {plural(resumed, 'time')}** and resumed from a checkpoint, which gives the numbers of a "
            f"run that never stopped{otherwise}.",
        )
    return Verdict("ok", "**Not interrupted**: training ran in one go, and no checkpoint was refused.")


def changed_settings(events: Iterable[dict[str, Any]]) -> list[tuple[int, str, str, str]]:
    """Step, name, value before and value after of what was changed during the run and not undone by a later resume."""
    changes: list[tuple[int, str, str, str]] = []
    for event in events:
        step = event.get("step", 0)
        if event.get("event") in ("started", "resumed"):
            changes = [change for change in changes if change[0] < step]
        elif event.get("event") == "settings changed":
            changed = event.get("changed", {}).items()
            changes += [(step, name, json.dumps(old), json.dumps(new)) for name, (old, new) in changed]
    return changes


def _bad_steps(run: Run) -> Verdict:
    """What the guard did, if there was one."""
    guard = run.model_settings["pretrain"].get("guard", {}).get("kind", "none")
    kinds = [event.get("event") for event in run.events]
    skipped, back = kinds.count("step skipped"), kinds.count("rolled back")
    overflowed = sum(int(event.get("steps", 0)) for event in run.events if event.get("event") == "overflow")
    scale = ""
    if overflowed:
        scale = f" Gradients overflowed float16 in {plural(overflowed, 'step')}, which is normal with loss scaling."
    if back or skipped:
        jumps = [event.get("rows", [0, 0]) for event in run.events if event.get("event") == "rolled back"]
        rows = plural(sum(last - first for first, last in jumps), "row")
        gone = f", went back {plural(back, 'time')} and jumped over {rows}" if back else ""
        return Verdict(
            "warning",
            f"**The guard left out {plural(skipped, 'step')}**{gone}: a loss or gradient was not a number, or far "
            "above the last ones. Which rows and documents they read is listed under what happened during training."
            f"{scale}",
        )
    if guard == "none":
        return Verdict("open", f"**Bad steps** were not looked for: the run had no guard.{scale}")
    return Verdict("ok", f"**No step had to be left out**: no loss or gradient was far above those before it.{scale}")
