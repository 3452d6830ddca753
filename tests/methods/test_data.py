"""Tokens: a chain that can be learned down to its entropy, text in windows, and errors that name file, line and
field."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from vrambench.methods.data import SUCCESSORS, Ahead, Chain, Text, open_data
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.config import model_config
from vrambench.methods.texts import read_documents
from vrambench.methods.workload import Workload

CPU = get_device("cpu")


def test_synthetic_sequences_depend_on_seed_and_step_alone() -> None:
    def tokens(seed: int, step: int) -> torch.Tensor:
        return open_data(Workload(seed=seed), model_config("tiny"), CPU).sequences(step, 3, 40)

    torch.manual_seed(5)
    first = tokens(0, 0)
    torch.manual_seed(6)
    assert torch.equal(first, tokens(0, 0))
    assert not torch.equal(first, tokens(0, 1))
    assert not torch.equal(first, tokens(1, 0))
    assert first.shape == (3, 40)
    assert first.dtype == torch.long


def test_synthetic_tokens_stay_in_the_vocabulary() -> None:
    config = model_config("tiny")
    config.vocab_size = 5
    tokens = open_data(Workload(), config, CPU).sequences(0, 8, 64)
    assert set(tokens.flatten().tolist()) == set(range(5))
    big = open_data(Workload(), model_config("llama-2-7b"), CPU).sequences(0, 8, 512)
    assert big.max() < 512


def test_entropy_is_that_of_the_sequences() -> None:
    chain = Chain(3, 16, torch.device("cpu"))
    tokens = chain.sequences(0, 200, 200)
    pairs = tokens[:, :-1].flatten() * 16 + tokens[:, 1:].flatten()
    counts = torch.bincount(pairs, minlength=256).view(16, 16).double()
    rows = counts / counts.sum(dim=1, keepdim=True)
    conditional = -(rows * rows.clamp_min(1e-30).log()).sum(dim=1)
    assert chain.entropy == pytest.approx((conditional * counts.sum(dim=1) / counts.sum()).sum().item(), abs=0.01)
    assert chain.entropy <= -sum(p * math.log(p) for p in SUCCESSORS) + 1e-12
    frequencies = counts.sum(dim=1) / counts.sum()
    torch.testing.assert_close(frequencies, torch.full_like(frequencies, 1 / 16), atol=0.01, rtol=0)


def test_a_small_model_learns_the_chain_down_to_its_entropy() -> None:
    config = model_config("tiny")
    config.vocab_size, config.num_hidden_layers = 32, 1
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    data = open_data(Workload(), config, CPU)
    assert isinstance(data, Chain)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        tokens = data.sequences(step, 8, 33)
        loss = torch.nn.functional.cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(32), abs=0.3)
    assert sum(losses[-10:]) / 10 == pytest.approx(data.entropy, abs=0.15)


def test_text_is_cut_into_windows_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("Wanderers Nachtlied: über allen Gipfeln ist Ruh", encoding="utf-8")
    data = open_data(Workload(data=str(path), prompt_tokens=4, response_tokens=4), model_config("tiny"), CPU)
    windows = data.sequences(0, 50, 8)
    content = path.read_bytes()
    assert all(bytes(row.tolist()) in content for row in windows)
    assert len({tuple(row.tolist()) for row in windows}) > 10
    assert torch.equal(windows, data.sequences(0, 50, 8))
    assert not torch.equal(windows, data.sequences(1, 50, 8))
    assert data.sequences(0, 2, len(content)).tolist() == [list(content)] * 2


def test_documents_end_in_the_end_token_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "ab"}\n\n{"prompt": "c", "completion": "d"}\n{"prompt": "e", "response": "f"}\n')
    assert read_documents(path) == ["ab", "cd", "ef"]
    workload = Workload(data=str(path), prompt_tokens=1, response_tokens=1)
    data = open_data(workload.model_copy(update={"model": "gpt2"}), model_config("gpt2"), CPU)
    assert isinstance(data, Text)
    assert data.tokens.tolist() == [97, 98, 50256, 99, 100, 50256, 101, 102, 50256]
    plain = open_data(workload, model_config("tiny"), CPU)
    assert isinstance(plain, Text)
    assert bytes(plain.tokens.tolist()) == b"abcdef"


def test_a_folders_own_tokenizer_is_used(tmp_path: Path) -> None:
    words = {"<unk>": 0, "</s>": 1, "to": 2, "be": 3, "or": 4, "not": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    folder = tmp_path / "model"
    model_config("tiny").save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    path = tmp_path / "hamlet.txt"
    path.write_text("to be or not to be")
    workload = Workload(model=str(folder), data=str(path), prompt_tokens=2, response_tokens=2)
    data = open_data(workload, model_config(str(folder)), CPU)
    assert isinstance(data, Text)
    assert data.tokens.tolist() == [2, 3, 4, 5, 2, 3, 1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "cannot be read: No such file"),
        ("empty.txt", " \n", "is empty"),
        ("empty.jsonl", "\n\n", "is empty"),
        ("short.txt", "abc", "has 3 tokens; one sequence takes 512"),
        ("bad.jsonl", '{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("list.jsonl", "[1]", "line 1: a list, not an object"),
        ("field.jsonl", '{"text": "a"}\n{"txt": "b"}', r"line 2: no field 'prompt' \(there are txt\)"),
        ("half.jsonl", '{"prompt": "b"}', "line 1: no field 'response'"),
        ("number.jsonl", '{"text": 3}', "line 1: text is a int, not text"),
    ],
)
def test_bad_files_are_named_with_line_and_field(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        open_data(Workload(data=str(path)), model_config("tiny"), CPU)
    assert caught.value.field == "data"
    assert name in str(caught.value)


def _small_vocabulary(folder: Path) -> str:
    return "needs token 122, and the model 'tiny' has 64"


def _no_tokenizer(folder: Path) -> str:
    return "has no tokenizer"


@pytest.mark.parametrize("case", [_small_vocabulary, _no_tokenizer])
def test_tokens_that_the_model_lacks(tmp_path: Path, case: Callable[[Path], str]) -> None:
    path = tmp_path / "text.txt"
    path.write_text("zzzzzzzz")
    config = model_config("tiny")
    model = "tiny"
    if case is _small_vocabulary:
        config.vocab_size = 64
    else:
        config.save_pretrained(tmp_path / "bare")
        model = str(tmp_path / "bare")
    with pytest.raises(ConfigurationError, match=case(path)):
        open_data(Workload(model=model, data=str(path), prompt_tokens=1, response_tokens=1), config, CPU)


def test_meta_has_shapes_and_reads_nothing() -> None:
    data = open_data(Workload(data="nowhere.txt"), model_config("tiny"), get_device("meta"))
    tokens = data.sequences(0, 3, 7)
    assert tokens.shape == (3, 7)
    assert tokens.is_meta
    assert tokens.dtype == torch.long


def test_what_was_prepared_is_given_out_once_and_is_the_same() -> None:
    chain = Chain(3, 16, torch.device("cpu"))
    made: list[tuple[int, ...]] = []

    class Counting:
        def sequences(self, *asked: int) -> torch.Tensor:
            made.append(asked)
            return chain.sequences(*asked)

    ahead = Ahead(Counting())
    ahead.prepare(4, 2, 8)
    assert torch.equal(ahead.sequences(4, 2, 8), chain.sequences(4, 2, 8))
    assert made == [(4, 2, 8)]
    assert torch.equal(ahead.sequences(4, 2, 8), chain.sequences(4, 2, 8))
    assert made == [(4, 2, 8)] * 2
    ahead.prepare(5, 2, 8)
    assert torch.equal(ahead.sequences(6, 2, 8), chain.sequences(6, 2, 8)), "another step's are made"
    assert torch.equal(ahead.sequences(5, 3, 8), chain.sequences(5, 3, 8))
