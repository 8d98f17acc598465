"""What is explained is what is encoded, merge by merge."""

from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.tokenizer.bpe import Pair, apply_merges
from groundup.tokenizer.byte_level import ByteLevel
from groundup.tokenizer.explain import merges_of
from groundup.tokenizer.tokenizer import Tokenizer

PAIRS = st.dictionaries(
    st.tuples(st.integers(0, 7), st.integers(0, 7)), st.tuples(st.integers(0, 3), st.integers(4, 7))
)


@given(st.lists(st.integers(0, 3), max_size=30), PAIRS)
def test_merges_of_a_pre_token_lead_to_the_ids_that_the_heap_finds(ids: list[int], merges: dict[Pair, Pair]) -> None:
    """Also where ranks are equal and a token can be made in several ways; each merge is applied at its place."""
    tokens = {place: (token, 1) for place, token in enumerate(ids)}  # where it begins → its id and length
    for made in merges_of(ids, merges):
        left, n_left = tokens[made.position]
        right, n_right = tokens.pop(made.position + n_left)
        assert (made.rank, made.joined) == merges[left, right]
        assert (left, right) == (made.left, made.right)
        tokens[made.position] = (made.joined, n_left + n_right)
    assert [token for _, (token, _) in sorted(tokens.items())] == apply_merges(ids, merges)


def test_at_each_turn_the_lowest_rank_there_is_goes_first_of_equals_the_leftmost() -> None:
    merges = {(0, 1): (5, 4), (1, 1): (5, 5), (4, 1): (2, 6), (5, 1): (2, 7)}
    made = merges_of([0, 1, 1, 1], merges)
    assert [(step.rank, step.joined, step.position) for step in made] == [(5, 4, 0), (2, 6, 0)]
    assert apply_merges([0, 1, 1, 1], merges) == [6, 1]


@settings(max_examples=150)
@given(st.one_of(st.text(), st.binary(), st.text(alphabet="ab é漢 \n<|endoftx>", max_size=80)), st.booleans())
def test_what_is_explained_is_what_is_encoded(tokenizer: Tokenizer, text: str | bytes, special: bool) -> None:
    allowed = frozenset({"<|endoftext|>"}) if special else frozenset()
    pre_tokens = list(tokenizer.explain(text, allowed))
    assert [i for pre_token in pre_tokens for i in pre_token.ids] == tokenizer.encode(text, allowed)
    for pre_token in pre_tokens:
        assert tokenizer.decode_bytes(pre_token.ids) == pre_token.raw
        if pre_token.kind == "merged":
            assert pre_token.merges is not None
            assert len(pre_token.ids) == len(pre_token.raw) - len(pre_token.merges)


def test_explanations_tell_special_tokens_whole_pre_tokens_and_what_is_too_long() -> None:
    learned = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    special, blank = learned.explain("<|im_end|> ", frozenset({"<|im_end|>"}))
    assert (special.kind, special.ids, special.merges) == ("special", (learned.special["<|im_end|>"],), ())
    assert blank.kind == "merged"
    (long,) = learned.explain("low" * 100)
    assert long.merges is None
    assert list(long.ids) == learned.encode("low" * 100)
    tokens = [*learned.tokens[:-1], b"lowe"]
    pairs = [(tokens.index(left), tokens.index(right)) for left, right in learned.merges]
    whole = Tokenizer(ByteLevel(tokens, pairs, {}, "gpt2", whole_pre_tokens=True))
    (pre_token,) = whole.explain("lowe")
    assert (pre_token.kind, pre_token.ids) == ("whole", (len(tokens) - 1,))
    assert [whole.tokens[made.joined] for made in pre_token.merges or ()] == [b"lo", b"low"], "its bytes stop there"
