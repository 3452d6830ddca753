"""The settings that a format makes of a user's configuration.

    draft = Draft(given, chosen)
    draft.set("batch_size", given.get("per_device_train_batch_size", 8), "per_device_train_batch_size")
    draft.done("trl-sft", "TRL's SFTConfig")          the configuration, as commands print it

A key that the format does not have is told with the nearest one that it has, and taken for one that is not modelled: TRL's
scripts go on without such keys, and a file may be of another version. So it is no error, and never passed over in silence; where
the nearest one is used, nobody knows what the job takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vrambench.bench.plan.config import Config, Made, ReadKey
from vrambench.bench.plan.configs.keys import Chosen, Given, Table
from vrambench.bench.plan.document import Document
from vrambench.bench.plan.matrix import Layer, Matrix, Setting
from vrambench.bench.results.forecast import Unmodelled
from vrambench.methods.errors import EXPLAINED, ConfigurationError, did_you_mean, shown
from vrambench.methods.workload import AXIS_NAMES

WHOLE = ("sft", "dpo", "reward")
"""Algorithms whose `max_length` says how long sequences are."""


class Draft:
    """The settings that a format makes of what is `given`. What the command line has `chosen` it overrules.
    `engine`: DeepSpeed's trains, so that there is no autocast; `engine_type`: in which its own file says."""

    def __init__(self, given: Given, chosen: Chosen) -> None:
        self.given, self.chosen = given, chosen
        self.engine, self.engine_type = False, ""
        self._adopted: list[ReadKey] = []
        self.axes: dict[str, Setting] = {}
        self.settings: dict[str, Setting] = {}
        self.taken: list[Made] = []
        self.doubts: list[Unmodelled] = []
        self._lacking: dict[str, str] = {}
        self._unsaid: dict[str, str] = {}
        self._made: dict[str, list[Made]] = {}
        self._reasons: dict[str, str] = {}
        self._suspect: set[str] = set()

    def beside(self, given: Given) -> Draft:
        """A draft of another file that says more of the same settings."""
        other = Draft(replace(given, mistakes=self.given.mistakes), self.chosen)
        other.axes, other.settings, other.taken = self.axes, self.settings, self.taken
        other._lacking, other._unsaid, other._suspect = self._lacking, self._unsaid, self._suspect
        return other

    def adopt(self, other: Draft, called: str, name: str) -> None:
        """Takes in what the file of `beside` said; its keys are told as `name: key`."""
        keys = other._keys(called)
        self._adopted += [replace(one, key=f"{name}: {one.key}") for one in keys]
        self.doubts += other.doubts

    def axis(self, name: str, fallback: str = "none") -> str:
        """The axis' value as it stands: the command line's, else the file's."""
        if name in self.chosen.axes:
            return self.chosen.axes[name]
        return str(self.axes[name].value) if name in self.axes else fallback

    def trained(self, by_file: str) -> str:
        """The algorithm, as it stands where the file says `by_file`; of TRL's own trainers, what they train by."""
        return self.axis("algorithm", by_file).removeprefix("trl_")

    def set(self, name: str, value: Any, *keys: str) -> None:
        """`name`, an axis, a field or an option, is `value`, which `keys` said; the first of them is to blame for it. A mistake
        where another key has said otherwise."""
        key, held = keys[0], self.axes if name in AXIS_NAMES else self.settings
        if name in held and held[name].value != value:
            origin = held[name].origin.removesuffix(": ")
            self.given.wrong(
                key,
                f"makes {name} {shown(value)}, and {origin} makes it {shown(held[name].value)}; leave one of both out",
            )
            return
        if self.given.mistakes.keys() & set(keys):
            self._suspect.add(name)
        overruled = name in self.chosen.axes or name in self.chosen.names
        for one in keys:
            told = _told(name, value) + (" (the command line says otherwise)" if overruled else "")
            self._made.setdefault(one, []).append(Made(name, told))
        if not (name in AXIS_NAMES and overruled):
            where = self.given.where(key)
            held[name] = Setting(value, where.removesuffix(f"{name}: ") if self.given.written(key) == name else where)

    def overrule(self, axis: str, value: str, other: Draft, key: str) -> None:
        """The axis is `value`, as `key` of the file of `beside` says, whatever this one says."""
        for made in self._made.values():
            made[:] = [Made("", f"{key} takes its place") if one.name == axis else one for one in made]
        self.axes.pop(axis, None)
        other.set(axis, value, key)

    def as_long_as(self, key: str, length: int) -> None:
        """Every sequence has as many tokens as `key` allows, unless the command line says how long they are."""
        if not {"response_tokens", "lengths"} & set(self.chosen.names):
            self.set("max_length", length, key)
            told = f"every sequence is as long as {key} lets it be (--set lengths=FILE says how long they are)"
            self.take(told, "max_length")

    def halves(self, length: int, key: str) -> None:
        """Of pairs' sequences of `length` tokens, which `key` says, half is the prompt; of another length that the command line
        says, one token."""
        self.set("prompt_tokens", 1 if "max_length" in self.chosen.names else length // 2, key)

    def say(self, key: str, told: str) -> None:
        """The file's `key` was used, and sets nothing of its own."""
        self._made.setdefault(key, []).append(Made("", told))

    def take(self, told: str, name: str = "") -> None:
        """Of what the file does not say, something is taken for granted: of `name`, where cells have that."""
        self.taken.append(Made(name, told))

    def lack(self, name: str, message: str, key: str) -> None:
        """What the file's `key` says of the axis or field `name` is not here: the command line must say another."""
        if name in self.chosen.axes or name in self.chosen.names:
            value = self.chosen.axes.get(name)
            self.say(
                key, f"{_told(name, value)}, as the command line says" if value else f"{name}, as the command line says"
            )
        else:
            self._lacking[name] = self.given.where(key) + message

    def unsaid(self, name: str, by: str) -> None:
        """The file does not say the axis or field `name`: the command line must, `by` an option such as `--model gpt2`."""
        if name not in self.chosen.axes and name not in self.chosen.names:
            self._unsaid[name] = by

    def needs_model(self) -> None:
        """The file names none."""
        self.unsaid("model", "--model llama-3.1-8b")

    def needs_length(self) -> None:
        """The file does not say how long whole sequences are. How long prompts and responses are is taken for granted."""
        if self.trained("sft") in WHOLE and not {"lengths", "response_tokens"} & set(self.chosen.names):
            self.unsaid("max_length", "--set max_length=1024")

    def doubt(
        self, key: str, reason: str, nbytes: int | None = None, *, less: bool = False, decisive: bool = False
    ) -> None:
        """The file's `key` may change memory by what is not modelled; by 0 bytes where the prediction takes more than the job.
        `less`: the job may take less, too."""
        self._reasons[key] = reason
        told = f"{self.given.written(key)}: {reason}"
        self.doubts.append(Unmodelled(reason=told, nbytes=nbytes, less=less or nbytes == 0, decisive=decisive))

    def doubt_starter(self, option: str, value: Any, reason: str) -> None:
        """The same of what starts the trainer, with `option`."""
        self._adopted.append(ReadKey(option, value, "not modelled", (), reason))
        self.doubts.append(Unmodelled(reason=f"{option}: {reason}"))

    def done(self, name: str, called: str) -> Config:
        """The configuration. Raises Refused where something is wrong, or lacks and the command line does not say it either."""
        messages = [*self.given.mistakes.values(), *self._lacking.values()]
        if self._unsaid:
            said_by = " ".join(self._unsaid.values())
            messages.append(f"{self.given.document.name}: it says no {_listed(self._unsaid)}; {said_by} would")
        if messages:
            raise Refused(messages)
        keys = (*self._keys(called), *self._adopted)
        defaults = tuple(
            Made(name, _told(name, setting.value))
            for name, setting in (self.axes | self.settings).items()
            if name not in self.chosen.names and setting.origin.startswith(self.given.nowhere)
        )
        said = frozenset((*self.settings, *self.chosen.names))
        return Config(
            self.given.document.name, name, called, keys, tuple(self.doubts), defaults, tuple(self.taken), said
        )

    def slips(self, called: str) -> Iterator[str]:
        """A sentence for each key that the format does not have where a used one was meant, of a file that is refused: that key may
        be what it lacks."""
        table = self.given.table
        for key, value in self.given.document.data.items():
            meant = None if value is None or table.knows(table.renamed.get(key, key)) else table.meant(key)
            if meant in table.used:
                yield f"{self.given.where(key)}no key of {called}; did you mean {meant!r}?"

    def layer(self) -> Layer:
        """The cell, without what was taken where a key is wrong."""
        axes = {axis: (setting,) for axis, setting in self.axes.items() if axis not in self._suspect}
        return Layer({name: one for name, one in self.settings.items() if name not in self._suspect}, axes)

    def _keys(self, called: str) -> tuple[ReadKey, ...]:
        return tuple(self._read(key, value, called) for key, value in self.given.document.data.items())

    def _read(self, written: str, value: Any, called: str) -> ReadKey:
        table = self.given.table
        key = table.renamed.get(written, written)
        if key in table.doubts and table.doubts[key].raised_by(value) and key not in self._reasons:
            found = table.doubts[key]
            self.doubt(key, found.reason, found.nbytes, less=found.less)
        if not table.knows(key) and value is not None:
            self._unknown(written, called)
        made = tuple(self._made.get(key, ()))
        if key in self._reasons:
            return ReadKey(written, value, "not modelled", made, self._reasons[key])
        if key in table.used and value == "auto" and not made:
            made = (Made("", "as the trainer says, else by default"),)
        return ReadKey(written, value, "used" if made else "without effect", made)

    def _unknown(self, written: str, called: str) -> None:
        """A key that the format does not have."""
        meant = self.given.table.meant(written)
        explained = written.lower() in EXPLAINED
        hint = did_you_mean(written, ()) if explained or not meant else f"; did you mean {meant!r}?"
        self.doubt(written, f"no key of {called}{hint}", decisive=explained or meant in self.given.table.used)


def _told(name: str, value: Any) -> str:
    return f"{name}: {value if isinstance(value, str) else shown(value)}"


def _listed(names: Iterable[str]) -> str:
    """`model, precision or adapter`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


class Refused(ConfigurationError):
    """What is wrong in a configuration, and what it does not say and the command line must: a sentence for each. `matrix`: what
    could be made of the rest."""

    def __init__(self, messages: Sequence[str], matrix: Matrix | None = None) -> None:
        super().__init__(messages[0])
        self.messages, self.matrix = tuple(dict.fromkeys(messages)), matrix


@dataclass(frozen=True, eq=False)
class Format:
    """`name`: as --config-format has it. `called`: in words. `algorithm`: the one whose trainer it configures, if it is one's.
    `draft`: what is made of a file. `marks`: keys by any of which a file is known to be one. `flat`: of one with sections, their
    keys beside each other. `unquoted`: its trainer reads quoted numbers, true and false as without quotes."""

    name: str
    called: str
    table: Table
    draft: Callable[[Draft], None]
    algorithm: str | None = None
    marks: frozenset[str] = frozenset()
    flat: Callable[[Document], Document] | None = None
    unquoted: bool = False
