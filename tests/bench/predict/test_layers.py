"""Traces of four layers, extended: the same, event by event, as traces of all layers."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest

from tests.bench.predict.conftest import OfLayers
from vrambench.bench.predict.several import order_of
from vrambench.bench.predict.simulate import Simulation, Simulator
from vrambench.bench.predict.tracing.decode_steps import without_marks
from vrambench.bench.predict.tracing.layers import NotAlike, extend
from vrambench.bench.predict.tracing.trace import ALLOC, FREE, MARK, Event, Place, Trace
from vrambench.methods.cell import Cell, resolve

SIMULATOR = Simulator()
FEW = 6
"""Layers: those that are traced, and two copies, which follow each other as more would."""


def cell(**more: Any) -> Cell:
    """gpt2's twelve layers unless told otherwise."""
    axes = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    work: dict[str, Any] = {
        "model": "gpt2",
        "prompt_tokens": 24,
        "response_tokens": 8,
        "rollout_batch": 4,
        "gradient_checkpointing": True,
        "galore": {"rank": 16},
        "grpo": {"beta": 0.1},
        "zero": {"reduce_bucket_size": 500_000_000},
    }
    for name, value in more.items():
        (axes if name in axes else work)[name] = value
    return resolve(axes, work)


def described(trace: Trace) -> list[tuple[Any, ...]]:
    """The trace with idents by order of appearance. In which order things that end together end is nobody's promise."""
    numbers: dict[int, int] = {}
    listed: list[tuple[Any, ...]] = []
    ending: list[tuple[Any, ...]] = []
    for event in trace.events:
        if event.kind == ALLOC:
            numbers[event.ident] = len(numbers)
        number = numbers.get(event.ident, -1)
        known = (event.kind, number, event.nbytes, event.place.phase, trace.owners.get(event.ident))
        if event.kind == FREE:
            ending.append(known[:2])
            continue
        listed += [*sorted(ending), (*known, event.ident in trace.hidden)]
        ending = []
    return listed + sorted(ending)


WHOLE: list[dict[str, Any]] = [{}, {"adapter": "lora", "algorithm": "ppo"}]
"""Of gpt2 with all its layers."""


@pytest.mark.parametrize(
    "more",
    [
        *WHOLE,
        {"eval_batch_size": 2, "prediction_loss_only": False, "save": "model"},
        {"algorithm": "ppo", "value": "separate", "optimizer": "adafactor"},
        {"algorithm": "remax", "precision": "fp32", "optimizer": "galore_adamw_layerwise", "max_grad_norm": 0.0},
        {"algorithm": "remax", "optimizer": "galore_adamw_8bit", "model": "opt-1.3b", "gradient_checkpointing": False},
        {"optimizer": "galore_adamw_layerwise", "galore": {"rank": 16, "svd": "randomized"}, "max_grad_norm": 0.0},
        {"adapter": "lora", "precision": "fp32", "optimizer": "adafactor"},
        {"adapter": "dora", "algorithm": "ppo"},
        {"adapter": "dora", "precision": "int8"},
        {"adapter": "dora", "precision": "nf4", "offload": "zero2_optimizer"},
        {"adapter": "lora", "precision": "nf4", "optimizer": "paged_adamw_8bit"},
        {"adapter": "ia3"},
        {"adapter": "vera", "lora_target_modules": "all-linear"},
        {"adapter": "oft", "algorithm": "ppo", "precision": "nf4"},
        {"adapter": "adalora"},
        {"adapter": "adalora", "algorithm": "ppo", "lora_target_modules": "all-linear"},
        {"adapter": "prompt_tuning", "algorithm": "ppo"},
        {"adapter": "lora", "precision": "int8", "gradient_accumulation_steps": 2, "gradient_checkpointing": False},
        {"adapter": "lora", "precision": "nf4", "eval_batch_size": 2, "save": "merged"},
        {"adapter": "lora", "precision": "int8", "algorithm": "ppo", "reward": "model", "reward_model": "gpt2"},
        {"precision": "fp16_amp", "optimizer": "adamw_torch_fused"},
        {"precision": "bf16_amp", "optimizer": "adamw_bnb_8bit", "algorithm": "ppo"},
        {"offload": "zero2_optimizer", "precision": "fp16"},
        {"offload": "zero2_optimizer", "model": "llama-1b", "zero": {"reduce_bucket_size": 2048 * 2048}},
        {"offload": "zero2_optimizer", "precision": "nf4", "adapter": "lora", "algorithm": "ppo", "value": "separate"},
        {"algorithm": "ppo", "gradient_accumulation_steps": 2, "model": "llama-1b"},
        {"algorithm": "ppo", "ref_reward_offload": True, "reward": "model", "reward_model": "gpt2"},
        {"algorithm": "grpo", "ref_reward_offload": True, "reference": "copy", "precision": "nf4", "adapter": "lora"},
        {"adapter": "lora", "precision": "int8", "model": "gpt-neox-20b", "algorithm": "ppo"},
        *(
            {"optimizer": name}
            for name in ("adamw_torch_8bit", "adamw_torch_4bit", "apollo_adamw", "galore_adafactor", "muon")
        ),
        *(
            {"optimizer": name}
            for name in ("ademamix", "ademamix_8bit", "lion_8bit", "paged_adamw_32bit", "stable_adamw")
        ),
        *({"optimizer": name} for name in ("schedule_free_adamw", "rmsprop", "adagrad")),
        {"optimizer": "sgd"},
        {"optimizer": "adamw_torch", "adamw": {"weight_decay": 0.1}},
        *(
            {"optimizer": f"{name}_layerwise", "max_grad_norm": 0.0}
            for name in ("adamw_torch", "adafactor", "apollo_adamw")
        ),
    ],
    ids=lambda more: " ".join(map(str, more.values())) or "plain",
)
def test_four_layers_tell_of_all(more: dict[str, Any], of_layers: OfLayers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the decode steps that are traced; those that are put in have four layers by design (test_decode_steps.py)."""
    monkeypatch.setattr("vrambench.bench.predict.simulate.with_all_steps", lambda trace, traced: without_marks(trace))
    model = more.get("model", "gpt2")
    made = cell(**more | {"model": model if more in WHOLE else of_layers(model, FEW)})
    short = SIMULATOR.run(made)
    whole: Simulation = SIMULATOR._simulated(made, None, None, order_of(made))
    assert short.layers == 4
    assert short.notes == whole.notes
    assert described(short.trace) == described(whole.trace)
    assert short.roles == whole.roles
    assert short.parameters == whole.parameters
    assert (short.managed_bytes, short.host_bytes) == (whole.managed_bytes, whole.host_bytes)


@pytest.mark.parametrize("name", ["UniLora", "Lily", "Psoft", "Glora", "VBLoRA", "WaveFT"])
def test_what_an_adapter_has_once_for_all_layers_is_counted_once(name: str, of_layers: OfLayers) -> None:
    more = {"VBLoRA": {"vector_length": 64}, "WaveFT": {"n_frequency": 100}}.get(name)
    made = cell(adapter=f"peft:{name}Config", model=of_layers("smollm2-135m", FEW), **({"peft": more} if more else {}))
    found, whole = SIMULATOR.run(made), SIMULATOR._simulated(made, None, None, order_of(made))
    assert found.parameters == whole.parameters
    assert found.roles == whole.roles
    assert found.trace.peak_bytes() == whole.trace.peak_bytes()


@pytest.mark.parametrize(
    "more",
    [
        {"adapter": "lora", "lora_target_modules": r"model\.layers\.[0-9]\.self_attn\.q_proj"},
        {"adapter": "rslora", "lora_target_modules": ["layers.0.self_attn.q_proj", "layers.11.self_attn.q_proj"]},
        {"adapter": "peft:LoHaConfig", "peft": {"r": 4, "layers_to_transform": list(range(10))}},
        {"adapter": "peft:LoraConfig", "peft": {"r": 4, "rank_pattern": {r"layers\.1[0-9]\..*": 16}}},
        {
            "adapter": "peft:AdaptionPromptConfig",
            "peft": {"adapter_len": 4, "adapter_layers": 10},
            "adapter_dtype": "bf16",
        },
        {"adapter": "peft:TinyLoraConfig"},
    ],
    ids=lambda more: more["adapter"],
)
def test_an_adapter_that_is_not_the_same_on_every_layer_is_traced_on_all(
    more: dict[str, Any], of_layers: OfLayers
) -> None:
    simulation = SIMULATOR.run(cell(model=of_layers("smollm2-135m", 12), **more))
    assert simulation.layers is None
    assert simulation.notes[0].startswith("every layer was traced")


@pytest.mark.parametrize(
    "names", [r"model\.layers\.\d+\.mlp\..*_proj", r".*\.[0-9]+\.(w1|dense_4h_to_h)", ["q_proj", "w1"]]
)
def test_names_of_all_layers_are_of_none(names: Any) -> None:
    made = cell(adapter="lora", lora_target_modules=names)
    assert not made.adapter_value.uneven(made.workload)


def test_layers_that_are_cut_across_are_all_traced() -> None:
    """DeepSpeed sends gradients when a bucket is full, in whichever layer that happens."""
    simulation = SIMULATOR.run(cell(offload="zero2_optimizer", zero={"reduce_bucket_size": 10_000_000}))
    assert simulation.layers is None
    assert simulation.notes[0].startswith("every layer was traced")


@pytest.mark.parametrize("more", [{"adapter": "lora", "precision": "int8"}, {"algorithm": "ppo", "adapter": "lora"}])
def test_in_which_order_a_graph_lets_go_of_its_layers_does_not_matter(
    more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is freed at the end of a step, with the last word on its loss, in any order."""
    choose = random.Random(0)

    def shuffled(trace: Trace, depths: list[int]) -> Trace:
        events: list[Event] = []
        moved = 0
        for frees, burst in groupby(trace.events, lambda event: event.kind == FREE):
            run = list(burst)
            if frees and {event.place.layer for event in run} >= {(0, layer) for layer in range(4)}:
                choose.shuffle(run)
                moved += 1
            events += run
        assert moved
        return extend(replace(trace, events=events), depths)

    made = cell(**more)
    plain = SIMULATOR.run(made)
    monkeypatch.setattr("vrambench.bench.predict.simulate.extend", shuffled)
    mixed = SIMULATOR.run(made)
    assert mixed.layers == plain.layers == 4
    assert described(mixed.trace) == described(plain.trace)


# --- by hand ---


def place(layer: int | None) -> Place:
    return Place("learn", 0, "policy", None if layer is None else (0, layer), "")


def passes(order: list[int | None], events: dict[int | None, list[tuple[int, str, int]]]) -> Trace:
    """A trace of runs, one for each layer in `order`; names of memory are made unique by layer, `^x` is the layer's above, `_x` the
    layer's below."""
    idents: dict[tuple[str, int | None], int] = {}
    trace = Trace()
    for layer in order:
        for kind, name, nbytes in events[layer] if layer in events else events[-1]:
            whose: int | None = layer
            if name[0] in "^_":
                assert layer is not None
                whose, name = layer + (1 if name[0] == "^" else -1), name[1:]
            ident = idents.setdefault((name, whose), len(idents))
            trace.events.append(Event(kind, ident, nbytes if kind == ALLOC else 0, "op", place(layer)))
    return trace


def sizes(trace: Trace) -> list[int]:
    """Bytes that are live after each event."""
    return [total for _, total in trace.live()]


def test_what_a_layer_frees_of_the_one_below_it_frees_in_every_copy() -> None:
    forward = [(ALLOC, "state", 10), (ALLOC, "inner", 3), (FREE, "inner", 0), (FREE, "_state", 0)]
    first = [(ALLOC, "state", 10)]
    trace = passes([0, 1, 2, 3, None], {0: first, -1: forward, None: []})
    assert sizes(trace) == [10, *[20, 23, 20, 10] * 3]
    longer = extend(trace, [7])
    assert sizes(longer) == [10, *[20, 23, 20, 10] * 6]


def test_what_lives_until_the_way_back_lives_in_every_copy() -> None:
    trace = passes([0, 1, 2, 3, None], {-1: [(ALLOC, "kept", 10)], None: []})
    back = passes([3, 2, 1, 0], {-1: [(FREE, "kept", 0)]})
    renamed = {3: 3, 2: 2, 1: 1, 0: 0}
    trace.events += [
        Event(FREE, renamed[event.place.layer[1]], 0, "op", event.place)  # type: ignore[index]
        for event in back.events
    ]
    longer = extend(trace, [9])
    assert max(sizes(longer)) == 90
    assert sizes(longer)[-1] == 0


def test_what_is_made_of_all_layers_grows_with_them() -> None:
    trace = passes([0, 1, 2, 3], {-1: [(ALLOC, "norm", 4)]})
    trace.events.append(Event(ALLOC, 99, 16, "stack", place(None)))
    trace.growth[99] = (0, 4)
    assert extend(trace, [10]).events[-1].nbytes == 40


def test_layers_that_do_different_things_are_refused() -> None:
    steps: dict[int | None, list[tuple[int, str, int]]] = {layer: [(ALLOC, "kept", 10 + layer)] for layer in range(4)}
    with pytest.raises(NotAlike, match="something else"):
        extend(passes([0, 1, 2, 3], steps), [8])


def test_memory_that_goes_in_some_layers_only_is_refused() -> None:
    trace = passes([0, 1, 2, 3], {-1: [(ALLOC, "kept", 10)]})
    trace.events += [Event(FREE, trace.events[1].ident, 0, "op", place(None))]
    with pytest.raises(NotAlike, match="not freed in every layer"):
        extend(trace, [8])


def test_a_layer_that_is_visited_alone_is_refused() -> None:
    trace = passes([0, 1, 2, 3, 1], {-1: [(ALLOC, "kept", 10)]})
    trace.events.append(Event(MARK, 0, 0, "", place(None)))
    with pytest.raises(NotAlike, match="visited alone"):
        extend(trace, [8])


def test_few_layers_are_left_as_they_are() -> None:
    trace = passes([0, 1, 2], {-1: [(ALLOC, "kept", 10)]})
    assert extend(trace, [3]) is trace
