"""Memory of people's own code: `watch`, its ledger, and how the two are told.

    with watch("24GiB") as ledger:
        with ledger.phase("rollout"):
            ...
        ...
    ledger.fits, ledger.memory.device_bytes, print(ledger)

On CUDA, peaks are measured; elsewhere the code runs on the simulated device, and its allocs and frees go through the model of
CUDA's allocator, as `fit`'s do. What asked for memory is what the tracer follows, here as there.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from vrambench.bench.measure.ledger import unpaged, weights
from vrambench.bench.measure.meters.cuda import CudaMeter
from vrambench.bench.measure.meters.host import NO_LIMIT
from vrambench.bench.predict.alloc_conf import read
from vrambench.bench.predict.replay import Replay, held, shares, whose
from vrambench.bench.predict.simulate import hidden_memory
from vrambench.bench.predict.tracing.trace import ALLOC, LayerIndex, Owner
from vrambench.bench.predict.tracing.tracer import Tracer
from vrambench.bench.predict.unseen.hardware import outside_allocator
from vrambench.bench.results.records import Held, Memory, OutOfMemory, Phase, Share
from vrambench.bench.watch.simulated import simulated_cuda
from vrambench.bench.watch.skeletons import Skeletons
from vrambench.methods.called import card_called, card_of, cards_called
from vrambench.methods.cards import CARDS, Card
from vrambench.methods.errors import ConfigurationError, UnknownValue, shown
from vrambench.methods.offload.learner import tensors_in
from vrambench.methods.sizes import parse_size
from vrambench.reports.units import size

MOST_LINES = 8
"""Owners and lines of code that are told."""
RUNS = "the watched code still runs; what it takes is known when `watch` is left"
LIBRARIES = (f"{sys.prefix}/", f"{sys.base_prefix}/", "<")


class Line(NamedTuple):
    """What one line of the user's code had asked for, live at the peak."""

    place: str
    nbytes: int


class LineTracer(Tracer):
    """A tracer that also keeps which line of the user's code asked: `lines`, by ident. `skeletons` take nothing."""

    def __init__(self, device_type: str, card: Card | None, skeletons: Skeletons) -> None:
        hidden = hidden_memory(None, card) if device_type == "meta" else None
        super().__init__(device_type, hidden=hidden)
        self.lines: dict[int, str] = {}
        self._skeletons = skeletons
        self._of_user: dict[str, bool] = {}

    def own(self, tensors: Iterable[torch.Tensor], owner: Owner) -> None:
        """What was made before, in a fixture of several tests, counts from here on."""
        listed = list(tensors)
        for tensor in listed:
            self._see(tensor, ())
        super().own(listed, owner)

    def _see(self, tensor: torch.Tensor, args: Any) -> int | None:
        if tensor.is_meta and self._skeletons.takes(tensor, args):
            return None
        return super()._see(tensor, args)

    def _begin(self, nbytes: int, layer: LayerIndex | None) -> int:
        ident = super()._begin(nbytes, layer)
        self.lines[ident] = self._line(sys._getframe(1))
        return ident

    def _line(self, frame: FrameType | None) -> str:
        while frame is not None:
            file = frame.f_code.co_filename
            known = self._of_user.get(file)
            if known is None:
                ours = frame.f_globals.get("__name__", "").startswith("vrambench.")
                known = self._of_user[file] = (
                    not ours and "site-packages" not in file and not file.startswith(LIBRARIES)
                )
            if known:
                return f"{file}:{frame.f_lineno}"
            frame = frame.f_back
        return ""


def _cuda_here() -> torch.device:
    """The process' current device, without initialising CUDA: what comes into being then is the meter's to count."""
    return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)


class Ledger:
    """What the watched code holds. Complete when `watch` is left; until then it takes phases.

    `memory`, `phases`: peaks in bytes, as of a cell. `at_peak`: whose was live at the peak; `held`: by module and
    operator; `lines`: by the user's line. `source`: measured or predicted. `oom`: where a limit stopped a prediction.
    """

    def __init__(self, limit_bytes: int | None, card: Card | None) -> None:
        self.limit_bytes, self.card = limit_bytes, card
        self.source = "measured" if torch.cuda.is_available() else "predicted"
        self.memory = Memory()
        self.phases: tuple[Phase, ...] = ()
        self.at_peak: tuple[Share, ...] = ()
        self.held: tuple[Held, ...] = ()
        self.lines: tuple[Line, ...] = ()
        self.peak_phase = ""
        self.peak_event = 0
        self.oom: OutOfMemory | None = None
        self.used = False
        self._ended = False
        self._phase, self._step, self._optimizer_steps = "load", -1, 0
        self._begun = False
        self._open: list[str] = []
        self._names: dict[nn.Module, str] = {}
        self._kind = "cuda" if self.source == "measured" else "meta"
        self._skeletons = Skeletons()
        self._tracer = LineTracer(self._kind, card, self._skeletons)
        self._meter = CudaMeter(_cuda_here()) if self._kind == "cuda" else None
        self._measured: list[Phase] = []

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit, the memory outside the allocator included; True where there is none. Raises
        RuntimeError while the code runs."""
        if not self._ended:
            raise RuntimeError(f"ledger.fits: {RUNS}")
        return self.limit_bytes is None or (self.oom is None and (self.memory.device_bytes or 0) <= self.limit_bytes)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs within counts for the phase `name`; what comes after it without a name is `learn`, once a step has begun.
        Raises ConfigurationError where `name` is no text, or empty."""
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(
                f"phase: {shown(name)} is no name; give text, as in phase('rollout')", field="phase"
            )
        before = self._phase
        self._open.append(name)
        self._enter(name)
        try:
            yield
        finally:
            self._open.pop()
            self._enter("learn" if before == "load" and self._step >= 0 else before)

    # --- while the code runs ---

    @contextmanager
    def _watching(self) -> Iterator[None]:
        with ExitStack() as exits:
            if self._meter is not None:
                self._meter.start()
                exits.callback(self._meter.stop)
            else:
                exits.enter_context(simulated_cuda(self.card, self._room, self._skeletons))
            for hook in (
                register_module_forward_pre_hook(self._before_forward),
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ):
                exits.callback(hook.remove)
            exits.enter_context(self._tracer)
            self._enter("load")
            try:
                yield
            finally:
                self._end_phase()

    def _room(self) -> tuple[int, int]:
        """Bytes of the simulated device that are free, and all: the limit, or the card's; without end where neither is known."""
        limit = self.limit_bytes or (self.card and (self.card.usable_bytes or self.card.marked_bytes)) or NO_LIMIT
        live = deque((total for _, total in self._tracer.trace.live()), maxlen=1)
        return max(0, limit - outside_allocator(self.card).expected_bytes - sum(live)), limit

    def _enter(self, phase: str) -> None:
        self._end_phase()
        self._phase = phase
        self._tracer.enter(phase)
        if self._meter is not None:
            self._begun = True
            self._meter.begin_phase(phase, self._step if self._step >= 0 else None)

    def _end_phase(self) -> None:
        if self._meter is not None and self._begun:
            torch.cuda.synchronize()  # the meter wants an idle device
            peaks = self._meter.end_phase()
            step = self._step if self._step >= 0 else None
            self._measured.append(Phase(name=self._phase, step=step, seconds=None, **vars(peaks)))

    def _before_forward(self, module: nn.Module, inputs: Any) -> None:
        if self._phase == "load" and not self._open:
            self._begin_step()
            self._enter("learn")
        elif self._step < self._optimizer_steps:
            self._begin_step()
            self._enter(self._phase)
        if not self._tracer.inside_module and module not in self._names:
            self._name(module)

    def _begin_step(self) -> None:
        self._step = self._optimizer_steps
        self._tracer.step(self._step)

    def _name(self, module: nn.Module) -> None:
        """A model that nobody named is called by its class; a second one of the class gets a number."""
        name = type(module).__name__
        same = sum(one.split(" ")[0] == name for one in self._names.values())
        name = f"{name} {same + 1}" if same else name
        self._names[module] = name
        self._tracer.watch(name, module)
        self._tracer.own(weights(module), Owner(name, "weights"))

    def _parameters(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str | None, list[nn.Parameter]]]:
        """The optimizer's parameters, by the model that has them."""
        left = {id(one): one for group in optimizer.param_groups for one in group["params"]}
        for module, name in self._names.items():
            its = [one for one in module.parameters() if left.pop(id(one), None) is not None]
            if its:
                yield name, its
        if left:
            yield None, list(left.values())

    def _before_step(self, optimizer: torch.optim.Optimizer, *given: Any) -> None:
        for name, its in self._parameters(optimizer):
            self._tracer.own(its, Owner(name, "weights"))
            gradients = (one.grad for one in its if one.grad is not None)
            self._tracer.own(gradients, Owner(name, "gradients", self._optimizer_steps))
        self._open.append(self._phase)
        self._enter("optimizer_step")

    def _after_step(self, optimizer: torch.optim.Optimizer, *given: Any) -> None:
        for name, its in self._parameters(optimizer):
            states = tensors_in([optimizer.state.get(one) for one in its])
            self._tracer.own(unpaged(states), Owner(name, "optimizer"))
        self._optimizer_steps += 1
        self._enter(self._open.pop())

    # --- afterwards ---

    def _close(self) -> None:
        trace = self._tracer.trace
        self.used = any(event.kind == ALLOC for event in trace.events)
        settings = read(None).settings
        replay = Replay(trace, settings)
        if self._meter is not None:
            self.memory, self.phases = self._meter.memory(), tuple(self._measured)
        else:
            replay = self._predicted(replay)
        self.at_peak, self.held, self.peak_event = shares(replay), held(replay), replay.peak_event
        self.peak_phase = (trace.events[replay.peak_event].place.phase or "") if self.used else ""
        found: Counter[str] = Counter()
        for event in replay.live_at_peak:
            role, kind = whose(event, trace)
            line = self._tracer.lines.get(event.ident) or "outside of the code"
            found[f"{line} ({' '.join(filter(None, (role, kind)))})"] += event.nbytes
        self.lines = tuple(Line(*item) for item in found.most_common())
        self._ended = True

    def _predicted(self, replay: Replay) -> Replay:
        context = outside_allocator(self.card).expected_bytes
        if self.limit_bytes is not None and replay.reserved_bytes + context > self.limit_bytes:
            capped = Replay(self._tracer.trace, read(None).settings, max(0, self.limit_bytes - context))
            self.oom = capped.oom
            replay = capped if capped.oom is None else replay
        self.memory = Memory(
            requested_bytes=replay.requested_bytes,
            allocated_bytes=replay.allocated_bytes,
            active_bytes=replay.active_bytes,
            reserved_bytes=replay.reserved_bytes,
            device_bytes=replay.reserved_bytes + context,
            context_bytes=context,
            num_alloc_retries=replay.num_alloc_retries,
        )
        asked = {(event.place.phase, event.place.step) for event in self._tracer.trace.events if event.kind == ALLOC}
        self.phases = tuple(
            Phase(
                name=name,
                step=step,
                seconds=None,
                allocated_bytes=allocated,
                reserved_bytes=reserved,
                device_bytes=reserved + context,
            )
            for (name, step), (allocated, reserved) in replay.phases.items()
            if (name, step) in asked  # where a loop's tensors only go is no phase of its own
        )
        return replay

    def verdict(self) -> str:
        """The peak and the limit in one sentence."""
        if not self._ended:
            return RUNS
        if not self.used:
            return "nothing was used on the device"
        peak = f"{size(self.memory.device_bytes)} {self.source}"
        if self.limit_bytes is None:
            return f"{peak} at the peak, in {self.peak_phase}"
        return f"{peak} at the peak, in {self.peak_phase}, {'within' if self.fits else 'over'} {size(self.limit_bytes)}"

    def _rows(self) -> list[tuple[str, str]]:
        """What was counted, and how much; nothing where no memory was used."""
        return list(self._counted()) if self.used else []

    def _counted(self) -> Iterable[tuple[str, str]]:
        for name in ("requested", "allocated", "active", "reserved", "context", "device"):
            yield name, size(getattr(self.memory, f"{name}_bytes"))
        for phase in self.phases:
            step = "" if phase.step is None else f" of step {phase.step}"
            yield f"in {phase.name}{step}", size(phase.allocated_bytes)
        for share in self.at_peak[:MOST_LINES]:
            yield f"at the peak: {' '.join(filter(None, (share.role, share.kind)))}", size(share.nbytes)
        for line in self.lines[:MOST_LINES]:
            yield f"asked for at {line.place}", size(line.nbytes)

    def __str__(self) -> str:
        rows = self._rows()
        width = max((len(count) for _, count in rows), default=0)
        return "\n".join([self.verdict(), *(f"  {count:>{width}}  {name}" for name, count in rows)])

    def _repr_html_(self) -> str:
        from vrambench.bench.watch.figure import figure

        return figure(self.verdict(), self._tracer.trace, self.peak_event, self._rows())


class watch:
    """Watches what runs within. `limit`: as `--budget`: a size or a card; `card`: whose hardware is predicted for, unless
    `limit` names it. Raises ConfigurationError for a limit or card that is none, with the nearest that is, and while another
    watch of the process is open."""

    _open: ClassVar[bool] = False

    def __init__(self, limit: str | int | None = None, card: str | None = None) -> None:
        self._refuse_another()
        try:
            limit_bytes = None if limit is None else parse_size(limit)
        except ValueError as error:
            raise ConfigurationError(f"limit: {error}", field="limit") from None
        named = card_called(card) if card else card_called(limit)
        if card and named is None:
            several = [one.name for one in cards_called(str(card))]
            raise UnknownValue("card", card, several or CARDS, told_by="vrambench list cards")
        if named is None and limit_bytes is not None:
            named = card_of(limit_bytes)
        self.ledger = Ledger(limit_bytes, named)
        self._exits = ExitStack()

    @staticmethod
    def _refuse_another() -> None:
        if watch._open:
            raise ConfigurationError(
                "watch: another watch, or a test's limit_vram or vram, is open in this process; leave it first, or name "
                "what runs within by its ledger's phase()"
            )

    def __enter__(self) -> Ledger:
        self._refuse_another()
        self._exits.enter_context(self.ledger._watching())
        watch._open = True
        return self.ledger

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        watch._open = False
        self._exits.__exit__(kind, error, traceback)
        self.ledger._close()
