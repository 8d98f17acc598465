"""Bits per byte: the definition, written out one document and one window at a time."""

import math

import numpy as np
import pytest
import torch

from groundup.evals.score import score
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.shards import Tokens, stream_of
from groundup.tokenizer.tokenizer import Tokenizer

TEXTS = ["the king", "and the little fox went over the hill to find a golden apple " * 3, "ü", "", "the old queen " * 9]


@pytest.fixture
def stream(tokenizer: Tokenizer) -> Tokens:
    return stream_of([(text, len(text.encode())) for text in TEXTS], tokenizer)


def bits_plainly(model: Transformer, tokenizer: Tokenizer, text: str) -> tuple[float, int]:
    ids = [tokenizer.opener, *tokenizer.encode(text), tokenizer.opener]
    bits, count = 0.0, 0
    for begin in range(0, len(ids) - 1, model.config.context_length):
        window = ids[begin : begin + model.config.context_length + 1]
        with torch.no_grad():
            logprobs = model(torch.tensor([window[:-1]])).double().log_softmax(dim=-1)[0]
        for place, target in enumerate(window[1:]):
            bits -= float(logprobs[place, target]) / math.log(2)
            count += 1
    return bits, count


@pytest.mark.parametrize("batch_rows", [1, 4, 100])
def test_score_is_the_definition(config: ModelConfig, tokenizer: Tokenizer, stream: Tokens, batch_rows: int) -> None:
    torch.manual_seed(0)
    model = Transformer(config.with_vocabulary(320)).eval()
    plain = [bits_plainly(model, tokenizer, text) for text in TEXTS]
    total_bits, total_tokens = sum(bits for bits, _ in plain), sum(count for _, count in plain)
    sizes = [len(text.encode()) for text in TEXTS]
    result = score(model, stream, batch_rows=batch_rows)
    assert result.bits_per_byte == pytest.approx(total_bits / sum(sizes), rel=1e-5)
    assert result.perplexity == pytest.approx(2 ** (total_bits / total_tokens), rel=1e-5)
    assert (result.documents, result.tokens, result.bytes) == (len(TEXTS), total_tokens, sum(sizes))


def test_a_uniform_model_needs_log2_of_the_vocabulary_bits_a_token(llama: ModelConfig, stream: Tokens) -> None:
    model = Transformer(llama.with_vocabulary(320))
    with torch.no_grad():
        model.embed.weight.zero_()  # tied: every logit is 0
    result = score(model, stream)
    assert result.perplexity == pytest.approx(320, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(math.log2(320) * result.tokens / result.bytes, rel=1e-5)


def test_standard_error_is_that_of_resampled_documents(llama: ModelConfig, tokenizer: Tokenizer) -> None:
    draw = np.random.default_rng(0)
    words = ["the", "king", "and", "little", "fox", "went", "over", "hill", "to", "find", "golden", "apple"]
    texts = [" ".join(draw.choice(words, size=draw.integers(5, 60))) for _ in range(150)]
    torch.manual_seed(0)
    model = Transformer(llama.with_vocabulary(320)).eval()
    result = score(model, stream_of([(text, len(text)) for text in texts], tokenizer))
    plain = np.array([bits_plainly(model, tokenizer, text)[0] for text in texts])
    sizes = np.array([len(text) for text in texts])
    again = []
    for _ in range(2000):
        chosen = draw.integers(0, 150, 150)
        again.append(plain[chosen].sum() / sizes[chosen].sum())
    assert result.standard_error == pytest.approx(np.std(again), rel=0.1)


def test_a_token_limit_reads_whole_documents_from_the_start(llama: ModelConfig, stream: Tokens) -> None:
    model = Transformer(llama.with_vocabulary(320))
    assert score(model, stream, max_tokens=1).documents == 1
    assert score(model, stream, max_tokens=int(stream.offsets[1]) + 1).documents == 2
    assert score(model, stream, max_tokens=10**9).documents == len(TEXTS)
    assert math.isnan(score(model, stream, max_tokens=1).standard_error)
