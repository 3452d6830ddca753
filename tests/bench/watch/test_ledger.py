"""`watch`: code that asks for CUDA runs on a machine without, and what it takes is told."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import vrambench
from vrambench.bench.watch.cuda import NoValue
from vrambench.bench.watch.ledger import Ledger

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="predicted where there is no CUDA")
KIB = 1024


def train(steps: int = 2) -> None:
    model = nn.Sequential(nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        model(torch.randn(4, 256, device="cuda")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def held(ledger: Ledger) -> dict[str, int]:
    return {share.kind: share.nbytes for share in ledger.at_peak if share.role == "Sequential"}


def test_weights_gradients_and_state_are_told_by_role_and_line() -> None:
    with vrambench.watch("24GiB") as ledger:
        train()
    assert ledger.fits
    assert ledger.source == "predicted"
    weights = 2 * 256 * KIB
    assert (held(ledger)["weights"], held(ledger)["gradients"], held(ledger)["optimizer"]) == (
        weights,
        weights,
        2 * weights,
    )
    assert any(__file__ in line.place and "optimizer" in line.place for line in ledger.lines)
    assert "at the peak: Sequential optimizer" in str(ledger)


def test_phases_nest_in_those_that_come_by_themselves() -> None:
    with vrambench.watch() as ledger, ledger.phase("mine"):
        train(1)
    assert {phase.name for phase in ledger.phases} == {"mine", "optimizer_step"}


def test_what_comes_after_a_phase_is_no_loading() -> None:
    with vrambench.watch() as ledger:
        with ledger.phase("epoch"):
            train(2)
        torch.zeros(2**20, device="cuda")
    assert [(phase.name, phase.step) for phase in ledger.phases if phase.name != "optimizer_step"] == [
        ("epoch", None),
        ("epoch", 0),
        ("epoch", 1),
        ("learn", 1),
    ]


def test_what_is_over_the_limit_does_not_fit() -> None:
    with vrambench.watch("503MiB") as ledger:
        train()
    assert not ledger.fits
    assert ", over 503 MiB" in ledger.verdict()


def test_torch_has_cuda_within_and_not_after() -> None:
    before = torch.cuda.is_available(), torch.autocast.__enter__, F.softmax
    with vrambench.watch():
        assert torch.cuda.is_available()
        with torch.device("cuda"):
            assert torch.zeros(2).is_cuda
        assert torch.zeros(2).to(torch.device("cuda", 0)).device == torch.device("cuda", 0)
        assert not torch.zeros(2).is_cuda
    assert (torch.cuda.is_available(), torch.autocast.__enter__, F.softmax) == before


@pytest.mark.parametrize(
    "asked",
    [
        lambda: torch.zeros(2, device="cuda:1"),
        lambda: torch.zeros(2).to(torch.device("cuda", 1)),
        lambda: torch.zeros(2).cuda(1),
        lambda: nn.Linear(2, 2).cuda(device="cuda:1"),
        lambda: nn.Linear(2, 2).to("cuda:1"),
        lambda: nn.Linear(2, 2).to(1),
        lambda: torch.zeros(2).to(1),
        lambda: torch.zeros(2, device=torch.device(1)),
        lambda: torch.cuda.device(1).__enter__(),
        lambda: torch.cuda.set_device(1),
        lambda: torch.cuda.set_device("cuda:1"),
    ],
)
def test_a_second_gpu_is_an_error_and_not_the_first(asked: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="cuda:1: invalid device ordinal; one GPU is simulated"), vrambench.watch():
        asked()


def test_the_first_gpu_may_be_named_by_its_number() -> None:
    with vrambench.watch() as ledger:
        torch.cuda.set_device(0)
        with (
            torch.cuda.device(0),
            torch.cuda.device("cuda"),
            torch.cuda.device(None),
            torch.cuda.device_of(torch.zeros(2)),
        ):
            assert torch.cuda.current_device() == 0
        made = [torch.zeros(2, device="cuda:0"), torch.zeros(2).cuda(0), nn.Linear(2, 2).cuda("cuda:0").weight]
        made += [torch.zeros(2, device=0), torch.zeros(2, device=torch.device(0)), torch.zeros(2).to(device=0)]
        made += [torch.zeros(2).to(0), torch.zeros(2).to(0, torch.float16), torch.zeros(2).half().to(0, copy=True)]
        made += [
            nn.Linear(2, 2).to(0).weight,
            nn.Linear(2, 2).to(device=0).weight,
            nn.Linear(2, 2).to(0, torch.float16).weight,
        ]
        assert {one.device for one in made} == {torch.device("cuda", 0)}
        assert [one.dtype for one in made].count(torch.float16) == 3
    assert ledger.used


def test_an_error_of_the_code_leaves_torch_as_it_was() -> None:
    with pytest.raises(KeyError), vrambench.watch():
        raise KeyError
    assert not torch.cuda.is_available()
    assert torch.zeros(1).item() == 0


def test_numbers_that_were_not_computed_are_nan() -> None:
    with vrambench.watch():
        loss = torch.zeros((), device="cuda")
        assert math.isnan(loss.item())
        assert math.isnan(float(loss))
        assert f"{loss:.3f}" == "nan"
        assert loss.cpu().isnan().item()
        assert loss.to("cpu").isnan().item()


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor: tensor.bool().item(),
        lambda tensor: bool(tensor > 0),
        lambda tensor: int(tensor.long()),
        lambda tensor: tensor.long().tolist(),
    ],
)
def test_what_decides_is_an_error(read: object) -> None:
    with vrambench.watch(), pytest.raises(NoValue, match="has no values"):
        read(torch.zeros(1, device="cuda"))  # type: ignore[operator]


def test_a_model_on_meta_takes_nothing_until_it_has_memory() -> None:
    with vrambench.watch() as ledger:
        with torch.device("meta"):
            model = nn.Linear(256, 256, bias=False)
        assert (model.weight.detach() + 1).device.type == "meta"
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            model.to("cuda")
        with ledger.phase("filled"):
            assert model.to_empty(device="cuda").weight.is_cuda
            moved = nn.Linear(256, 256, bias=False).to("cuda").to("meta")
            assert moved.weight.device.type == "meta"
    assert [(phase.name, phase.allocated_bytes) for phase in ledger.phases] == [("filled", 2 * 256 * KIB)]


def test_while_the_code_runs_nothing_is_said_of_it() -> None:
    with vrambench.watch("24GiB") as ledger:
        torch.zeros(4, device="cuda")
        assert str(ledger) == "the watched code still runs; what it takes is known when `watch` is left"
        with pytest.raises(RuntimeError, match=r"ledger.fits: the watched code still runs"):
            assert ledger.fits
    assert ledger.fits


@pytest.mark.parametrize(
    "asked",
    [
        lambda tensor: tensor[tensor > 0],
        lambda tensor: torch.where(tensor > 0),
        lambda tensor: torch.unique(tensor),
        lambda tensor: torch.allclose(tensor, tensor),
        lambda tensor: torch.zeros(4).copy_(tensor),
    ],
)
def test_what_depends_on_values_is_an_error(asked: Callable[[torch.Tensor], object]) -> None:
    with vrambench.watch(), pytest.raises(NoValue, match="what it gives depends on values"):
        asked(torch.zeros(4, device="cuda"))


def test_mistakes_of_the_code_are_told_as_on_cuda() -> None:
    with vrambench.watch():
        with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
            torch.zeros(4, device="cuda") + torch.zeros(4)
        with pytest.raises(RuntimeError, match="same reduction dim"):
            torch.zeros(4, 4, device="cuda") @ torch.zeros(3, 3, device="cuda")


def test_tied_weights_stay_tied() -> None:
    model = nn.ModuleList([nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False)])
    model[1].weight = model[0].weight
    with vrambench.watch() as ledger:
        model.to("cuda")
        assert model[0].weight is model[1].weight
    assert ledger.memory.allocated_bytes == 256 * KIB


def test_autocast_casts_as_on_cuda() -> None:
    with vrambench.watch():
        layer = nn.Linear(8, 8).cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert layer(torch.zeros(8, 8, device="cuda")).dtype == torch.bfloat16
        assert layer(torch.zeros(8, 8, device="cuda")).dtype == torch.float32


def test_checkpointed_code_that_names_cuda_runs_in_the_backward_pass() -> None:
    def part(states: torch.Tensor) -> torch.Tensor:
        return states * torch.ones(8, device="cuda")

    with vrambench.watch() as ledger:
        states = torch.zeros(8, device="cuda", requires_grad=True)
        torch.utils.checkpoint.checkpoint(part, states, use_reentrant=False).sum().backward()
    assert ledger.used


@pytest.mark.parametrize(("limit", "said"), [("24GiBB", "did you mean"), ("rtx-409", "rtx-4090")])
def test_a_bad_limit_is_told_with_the_nearest(limit: str, said: str) -> None:
    with pytest.raises(vrambench.ConfigurationError, match=said):
        vrambench.watch(limit)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("rtx-4900", "'rtx-4900' is unknown; did you mean 'rtx-4090'?"),
        ("rtx-999", "'rtx-999' is unknown; nearest are rtx-5090, "),
        ("a100", "'a100' is not one of a100-40gb, a100-80gb"),
    ],
)
def test_a_bad_card_is_told_with_the_nearest(card: str, said: str) -> None:
    with pytest.raises(vrambench.ConfigurationError) as told:
        vrambench.watch("1GiB", card=card)
    assert str(told.value).startswith(f"card: {said}")


def test_recording_the_allocator_is_nothing_and_said(tmp_path: Path) -> None:
    memory: Any = torch.cuda.memory
    with vrambench.watch():
        with pytest.warns(UserWarning, match=r"memory._record_memory_history\(\) does nothing on the simulated device"):
            memory._record_memory_history(max_entries=100)
        with pytest.warns(UserWarning, match=r"memory._dump_snapshot\(\) does nothing"):
            memory._dump_snapshot(str(tmp_path / "job.pickle"))
        for read in (memory._snapshot, torch.cuda.memory_snapshot):
            with pytest.raises(RuntimeError, match=r"snapshot\(\) is not known on the simulated device"):
                read()
    assert not list(tmp_path.iterdir())


def test_a_generator_for_cuda_is_taken_as_on_cuda() -> None:
    real, before = torch.Generator, torch.Generator()
    with vrambench.watch() as ledger:
        for made in (torch.Generator(device="cuda"), torch.Generator("cuda:0").manual_seed(7)):
            assert made.device == torch.device("cuda", 0)
            drawn = torch.randn(512, device="cuda", generator=made)
            assert drawn.uniform_(generator=made).device == torch.device("cuda", 0)
            assert torch.randperm(8, device="cuda", generator=made).is_cuda
        on_cpu = torch.Generator().manual_seed(7)
        assert on_cpu.device == torch.device("cpu")
        assert torch.equal(torch.randn(8, generator=on_cpu), torch.randn(8, generator=real().manual_seed(7)))
        assert all(isinstance(one, torch.Generator) for one in (made, on_cpu, before))
        with pytest.raises(RuntimeError, match="cuda:1: invalid device ordinal"):
            torch.Generator(device="cuda:1")
    assert torch.Generator is real
    assert ledger.used


@pytest.mark.parametrize("made_before", [True, False])
def test_a_watch_in_another_is_refused_and_the_outer_one_goes_on(made_before: bool) -> None:
    made = vrambench.watch("1GiB")
    with vrambench.watch("1GiB") as ledger:
        with pytest.raises(vrambench.ConfigurationError, match=r"another watch, or .*, is open"):
            (made if made_before else vrambench.watch("1GiB")).__enter__()
        torch.ones(3, device="cuda")
    assert ledger.memory.requested_bytes == 12
    with made as after:
        torch.ones(3, device="cuda")
    assert after.memory.requested_bytes == 12


@pytest.mark.parametrize(("name", "shown"), [(7, "7"), (None, "null"), ("", "''"), (" ", "' '")])
def test_a_phase_without_a_name_is_refused_at_once(name: object, shown: str) -> None:
    with vrambench.watch() as ledger:
        with pytest.raises(vrambench.ConfigurationError, match=f"phase: {shown} is no name"):
            ledger.phase(name).__enter__()  # type: ignore[arg-type]
        torch.ones(3, device="cuda")
    assert {phase.name for phase in ledger.phases} == {"load"}


def test_another_thread_has_no_simulated_device() -> None:
    found: list[str] = []

    def work() -> None:
        try:
            torch.ones(3, device="cuda")
        except (AssertionError, RuntimeError) as error:
            found.append(str(error))

    with vrambench.watch() as ledger:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found
    assert not ledger.used


def test_nothing_used_is_said() -> None:
    with vrambench.watch("1GiB") as ledger:
        torch.zeros(8)
    assert not ledger.used
    assert str(ledger) == "nothing was used on the device"


def test_importing_vrambench_and_its_plugin_imports_no_torch() -> None:
    code = "import sys, vrambench, vrambench.bench.watch.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_trainer_of_transformers_trains(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    rows = [{"input_ids": list(range(16)), "labels": list(range(16))} for _ in range(4)]
    with vrambench.watch("24GiB") as ledger:
        told = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=2,
            max_steps=2,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            logging_nan_inf_filter=False,
        )
        Trainer(LlamaForCausalLM(config), told, train_dataset=rows).train()
    assert {phase.name for phase in ledger.phases} == {"load", "learn", "optimizer_step"}
    assert any(share.kind == "optimizer" and share.role == "LlamaForCausalLM" for share in ledger.at_peak)


@pytest.mark.parametrize("name", ["memory_allocated", "max_memory_allocated", "mem_get_info", "get_device_properties"])
def test_what_the_allocator_counts_is_no_zero(name: str) -> None:
    """Without a GPU, torch says 0, with which every comparison passes."""
    with vrambench.watch(), pytest.raises(NoValue, match="the ledger has the peaks afterwards"):
        getattr(torch.cuda, name)(0)
