"""Beam search finds what another library's finds."""

from itertools import product
from pathlib import Path

import pytest
import torch
import transformers

import groundup
from groundup.generation.beam import beam_search
from groundup.generation.engine import Engine
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beams_are_hugging_faces(tmp_path: Path, length_penalty: float) -> None:
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, max_position_embeddings=64)).eval()
    for parameter in theirs.parameters():
        parameter.data.mul_(6.0)  # so that some tokens are much likelier than others
    theirs.save_pretrained(tmp_path)
    ours, _ = groundup.load(tmp_path, device="cpu")
    for prompt in ([3, 4, 5], [7], [*range(20, 33)]):
        expected = theirs.generate(
            torch.tensor([prompt]),
            num_beams=3,
            num_return_sequences=3,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
            length_penalty=length_penalty,
        )
        found = beam_search(Engine(ours), prompt, 3, max_tokens=8, stops={2}, length_penalty=length_penalty)
        answers = [[id for id in row[len(prompt) :].tolist() if id not in (0, 2)] for row in expected]
        assert [[id for id in beam.ids if id] for beam in found] == answers


def test_as_many_beams_as_answers_find_the_likeliest(llama: ModelConfig) -> None:
    model = Transformer(llama.model_copy(update={"vocab_size": 4}), seed=1).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3.0)

    def likelihood(answer: tuple[int, ...]) -> float:
        logits = model(torch.tensor([[1, *answer]]))[0].log_softmax(dim=-1)
        return sum(logits[at, id].item() for at, id in enumerate(answer))

    best, *_ = beam_search(Engine(model), [1], 64, max_tokens=3)
    likeliest = max(product(range(4), repeat=3), key=likelihood)
    assert best.ids == likeliest and best.logprob == pytest.approx(likelihood(likeliest), abs=1e-5)
