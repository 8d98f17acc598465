"""Model directories as transformers writes them are scored and continued as transformers does, behind their own opener;
and exported again, they are the same to transformers.

Each of the twelve architectures with the kind of tokenizer that it usually comes with, learned here on the storybook.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from groundup.corpus.settings import CorpusSettings
from groundup.evals.run import score_files
from groundup.export.run import export
from groundup.export.settings import ExportSettings
from groundup.generation.text import generate
from groundup.tokenizer.declared import read_table
from groundup.tokenizer.split import PATTERNS
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.configs import filled
from groundup.weights.files import chat_of
from groundup.weights.load import load_with_tokenizer, read_weights

CONTEXT = 48
LLAMA = {
    "max_position_embeddings": CONTEXT, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 40,
}  # fmt: skip
GPT2 = {"n_positions": CONTEXT, "n_embd": 24, "n_layer": 2, "n_head": 4}
PROMPT = "The old king said"


@dataclass(frozen=True)
class Kind:
    """An architecture, and what its tokenizer's files say."""

    sizes: dict[str, Any]
    write: Callable[["Kind", Path, list[str]], Callable[[str], list[int]]]
    """Writes the tokenizer; its library's text → ids."""
    opener: str
    closer: str
    stops: tuple[str, ...] = ()
    """Of generation_config.json, where they are not the closer alone."""
    special: tuple[str, ...] = ()
    """In the order of their ids."""
    pattern: str = "gpt2"
    config: dict[str, Any] = field(default_factory=dict)
    """Of tokenizer_config.json."""
    template: bool = False
    """Whether the tokenizer itself puts the opener before a text."""


def byte_level(kind: Kind, folder: Path, texts: list[str]) -> Callable[[str], list[int]]:
    made = tokenizers.Tokenizer(models.BPE())
    if kind.pattern == "qwen2":
        made.normalizer = normalizers.NFC()
    if kind.pattern == "gpt2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        cut = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[kind.pattern]), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(kind.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    if kind.template:
        made.post_processor = processors.TemplateProcessing(
            single=f"{kind.opener} $A", special_tokens=[(kind.opener, made.token_to_id(kind.opener))]
        )
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **kind.config).save_pretrained(folder)
    return lambda text: list(made.encode(text, add_special_tokens=False).ids)


def two_files(kind: Kind, folder: Path, texts: list[str]) -> Callable[[str], list[int]]:
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(texts, vocab_size=400, special_tokens=list(kind.special), show_progress=False)
    made.save_model(str(folder))
    return lambda text: list(made.encode(text).ids)


def sentencepiece(kind: Kind, folder: Path, texts: list[str]) -> Callable[[str], list[int]]:
    """Its `special` are unknown, opener and closer, or Gemma's order of four."""
    import sentencepiece

    numbers = {name: kind.special.index(name) for name in kind.special}
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(line for text in texts for line in text.splitlines() if line),
        model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=400, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        unk_id=numbers["<unk>"], bos_id=numbers[kind.opener], eos_id=numbers[kind.closer],
        pad_id=numbers.get("<pad>", -1), bos_piece=kind.opener, eos_piece=kind.closer,
    )  # fmt: skip
    if kind.config:
        (folder / "tokenizer_config.json").write_text(json.dumps(kind.config))
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda text: list(library.EncodeAsIds(text))


def of_transformers(kind: Kind, folder: Path, texts: list[str]) -> Callable[[str], list[int]]:
    """The same model, as transformers writes it now: a tokenizer.json with byte fallback."""
    (folder / "first").mkdir()
    sentencepiece(kind, folder / "first", texts)
    read = transformers.AutoTokenizer.from_pretrained(folder / "first")
    read.save_pretrained(folder)
    return lambda text: list(read.encode(text, add_special_tokens=False))


END = ("<|endoftext|>",)
SAME = {"bos_token": END[0], "eos_token": END[0]}
LLAMA2 = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
S = ("<unk>", "<s>", "</s>")
KINDS = {
    "gpt2": Kind(GPT2, byte_level, *END * 2, special=END, config=SAME),
    "gptj": Kind({**GPT2, "rotary_dim": 4}, byte_level, *END * 2, special=END, config=SAME),
    "gpt_neox": Kind({**{key: LLAMA[key] for key in LLAMA if key != "num_key_value_heads"}, "rotary_pct": 1.0},
                     byte_level, *END * 2, special=(*END, "<|padding|>"), config=SAME),
    "opt": Kind({**{key: LLAMA[key] for key in [*LLAMA][:4]}, "ffn_dim": 40, "word_embed_proj_dim": 24}, two_files,
                "</s>", "</s>", special=("<s>", "<pad>", "</s>", "<unk>")),
    "bloom": Kind({"hidden_size": 24, "n_layer": 2, "n_head": 4}, byte_level, "<s>", "</s>", special=(*S, "<pad>"),
                  config={"bos_token": "<s>", "eos_token": "</s>"}),
    "llama": Kind(LLAMA, sentencepiece, "<s>", "</s>", special=S, config={**LLAMA2, "add_bos_token": True}),
    "llama 3": Kind(LLAMA, byte_level, "<|begin_of_text|>", "<|end_of_text|>", ("<|end_of_text|>", "<|eot_id|>"),
                    ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"), "llama3", {"eos_token": "<|end_of_text|>"},
                    template=True),
    "mistral": Kind(LLAMA, of_transformers, "<s>", "</s>", special=S, config=LLAMA2),
    "mixtral": Kind({**LLAMA, "num_local_experts": 4}, sentencepiece, "<s>", "</s>", special=S, config=LLAMA2),
    "qwen2": Kind(LLAMA, byte_level, *END * 2, special=(*END, "<|im_start|>", "<|im_end|>"), pattern="qwen2",
                  config={"eos_token": END[0]}),
    "qwen3": Kind({**LLAMA, "head_dim": 10}, byte_level, END[0], "<|im_end|>", ("<|im_end|>", END[0]),
                  (*END, "<|im_start|>", "<|im_end|>"), "qwen2", {"eos_token": "<|im_end|>"}),
    "olmo2": Kind(LLAMA, byte_level, *END * 2, special=(*END, "<|pad|>"), pattern="cl100k", config=SAME),
    "gemma2": Kind({**LLAMA, "head_dim": 10}, sentencepiece, "<bos>", "<eos>",
                   special=("<pad>", "<eos>", "<bos>", "<unk>")),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, story_texts: list[str]
) -> tuple[Kind, Path, Any, Callable[[str], list[int]]]:
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp("written")
    ids = kind.write(kind, folder, story_texts[:40])
    of = Tokenizer.load(folder)
    opener, closer = of.special[kind.opener], of.special[kind.closer]
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(
        request.param.split()[0], **kind.sizes, vocab_size=of.vocab_size, pad_token_id=None, bos_token_id=opener,
        eos_token_id=closer,
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if kind.stops:
        theirs.generation_config.eos_token_id = [of.special[name] for name in kind.stops]
    theirs.save_pretrained(folder)
    return kind, folder, theirs, ids


def test_bits_per_byte_are_those_of_transformers_behind_the_models_opener(
    written: tuple[Kind, Path, Any, Callable[[str], list[int]]], tmp_path: Path, story_texts: list[str]
) -> None:
    kind, folder, theirs, ids = written
    model, tokenizer = load_with_tokenizer(folder, "cpu")
    bits, n_bytes = 0.0, 0
    texts = ["\n".join(text[:600].split("\n")).strip() for text in story_texts[50:53]]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
        n_bytes += len(text.encode())
        whole = torch.tensor([tokenizer.special[kind.opener], *ids(text), tokenizer.special[kind.closer]])
        for first in range(0, len(whole) - 1, CONTEXT):
            row, targets = whole[first : first + CONTEXT], whole[first + 1 : first + CONTEXT + 1]
            with torch.no_grad():
                scores = theirs(row[None]).logits[0, : len(targets)].double().log_softmax(dim=-1)
            bits -= scores.gather(1, targets[:, None]).sum().item() / math.log(2)
    model.config = model.config.model_copy(update={"context_length": CONTEXT})  # bloom's has none of its own
    settings = CorpusSettings.from_table(
        {"sources": ["x"], "unicode": {"kind": "none"}, "whitespace": {"kind": "none"}}
    )
    score = score_files(model, tokenizer, (str(tmp_path),), settings)
    assert score.bits_per_byte == pytest.approx(bits / n_bytes, rel=1e-4)


def test_greedy_text_is_that_of_transformers_behind_the_models_opener(
    written: tuple[Kind, Path, Any, Callable[[str], list[int]]],
) -> None:
    kind, folder, theirs, ids = written
    model, tokenizer = load_with_tokenizer(folder, "cpu")
    for prompt in (PROMPT, "", "Snow fell,"):
        begun = torch.tensor([[tokenizer.special[kind.opener], *ids(prompt)]])
        (made,) = theirs.generate(
            begun, attention_mask=torch.ones_like(begun), do_sample=False, max_new_tokens=25, pad_token_id=0
        ).tolist()
        ours = generate(model, tokenizer, prompt, max_tokens=25, temperature=0.0)
        text = [i for i in made if i not in tokenizer.special.values()]
        assert prompt + ours == tokenizer.decode(text), kind


TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}\n{% endfor %}"


def test_an_export_is_to_transformers_what_it_was_made_from(
    written: tuple[Kind, Path, Any, Callable[[str], list[int]]], tmp_path: Path
) -> None:
    kind, folder, theirs, _ = written
    source = Path(shutil.copytree(folder, tmp_path / "source"))
    table = read_table(source / "tokenizer_config.json")
    roles = {"bos_token": kind.opener, "eos_token": kind.closer}
    (source / "tokenizer_config.json").write_text(json.dumps({**table, **roles, "chat_template": TEMPLATE}))
    (source / "chat_template.jinja").unlink(missing_ok=True)
    out = tmp_path / "out"
    export(source, out, ExportSettings(to=("huggingface",)))
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    before, after = (transformers.AutoTokenizer.from_pretrained(path) for path in (source, out))
    ids = torch.randint(len(before), (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-5)
    for text in (PROMPT, f"a {kind.closer}{kind.opener} b", "naïve 🦊", ""):
        assert after(text)["input_ids"] == before(text)["input_ids"]
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": f" no {kind.closer}"}]
    text = before.apply_chat_template(messages, tokenize=False)
    assert after.apply_chat_template(messages, tokenize=False) == text
    chats = [chat_of(path) for path in (source, out)]
    safe = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "naïve  no"}]
    assert chats[0] and chats[0].render(safe)[0] == before.apply_chat_template(safe)["input_ids"]
    assert [chat and chat.text(messages) for chat in chats] == [text, text]
    (config, weights), (same, those) = read_weights(source), read_weights(out)
    assert filled(same) == filled(config) and weights.keys() == those.keys()
    assert all(torch.allclose(weights[name], those[name], rtol=0, atol=1e-6) for name in weights)
    assert Tokenizer.load(out).digest == Tokenizer.load(source).digest
    assert Tokenizer.load(out).roles == Tokenizer.load(source).roles
