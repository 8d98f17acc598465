"""Each check of text, on what it looks at."""

import numpy as np

from groundup.pretrain.doctor import texts
from groundup.shards import Tokens, count_ids
from groundup.tokenizer.tokenizer import Tokenizer

WORDS = "the king and the little fox went over the hill to find a golden apple for the old queen who sat by the well"


def test_ids_that_never_occur_are_told_apart(tokenizer: Tokenizer) -> None:
    """The bytes that a text lacks are nobody's fault; merged tokens are, where others could be learned."""
    ids = [tokenizer.opener, *tokenizer.encode(WORDS)]
    tokens = Tokens(np.array(ids, np.uint16), np.array([0, len(ids) - 1]), np.array([len(WORDS)]))
    counts = count_ids([tokens.ids, tokens.ids], tokenizer.vocab_size)
    assert counts.tolist() == [2 * ids.count(i) for i in range(320)]
    unused = set(range(320)) - set(ids) - set(tokenizer.special.values())
    n_bytes = sum(i < 256 for i in unused)
    line = texts.check_vocabulary(counts, tokenizer, may_learn=True)
    assert line.level == "ok"
    assert line.finding.startswith(f"of 320 ids {len(unused)} never occur: ")
    assert f"{n_bytes} are bytes that these texts do not have" in line.finding
    assert n_bytes < len(unused) < n_bytes + 24, "most of the 48 merged tokens are used"
    counts[256:304] = 1
    assert texts.check_vocabulary(counts, tokenizer, may_learn=True).finding == (
        f"of 320 ids {n_bytes} never occur: bytes that these texts do not have"
    )
    counts[270:] = 0
    line = texts.check_vocabulary(counts, tokenizer, may_learn=True)
    assert line.level == "warning"
    assert 'tokenizer.kind = "learned" instead of "existing"' in line.advice
    assert texts.check_vocabulary(counts, tokenizer, may_learn=False).level == "ok"


def test_marks_between_texts_are_named_with_the_setting_that_cuts_there() -> None:
    line = texts.check_separators({"<|endoftext|>": {"times": 400, "files": 2, "file": "a.txt"}})
    assert line.level == "warning"
    assert line.finding == "2 files (a.txt, …) hold <|endoftext|> 400 times; it is read as ordinary text"
    assert line.advice == "set corpus.separator = '<|endoftext|>', if documents end there"
    assert texts.check_separators({}).level == "ok"


def found(copied: int, dropped: int = 0, repetitive: bool = False) -> dict[str, object]:
    """What the corpus stage says of 100 validation and 50 test documents, of which so many have copies in training."""
    documents = {"validation": 100, "test": 50}
    here = {"validation": copied, "test": 0}
    counts = {"words": 13, "copies": 3 * copied, "dropped": dropped, "repetitive": repetitive}
    return counts | {"documents": documents, "copied": here}


def test_copies_of_held_out_text_that_stayed_in_training_are_named() -> None:
    assert texts.check_held_out(None).level == "ok", "a corpus that was not asked"
    assert texts.check_held_out(found(0)).finding == (
        "0 of 100 validation, 0 of 50 test documents have copies among the training documents"
    )
    line = texts.check_held_out(found(4, dropped=12))
    assert line.level == "ok"
    assert "4 of 100 validation" in line.finding
    assert "12 were dropped" in line.finding
    line = texts.check_held_out(found(4))
    assert line.level == "warning"
    assert 'set corpus.held_out.action = "drop"' in line.advice
    assert (texts.check_held_out(found(8)).level, texts.check_held_out(found(8)).exit_code) == ("error", 3)
    line = texts.check_held_out(found(90, repetitive=True))
    assert (line.level, line.advice) == ("warning", "the texts are repetitive: scores will say little")
