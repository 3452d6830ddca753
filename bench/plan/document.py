"""YAML that knows its lines, so that an error can say where it stands.

    document = load(Path("matrix.yaml"))
    document.data                                      plain lists, dictionaries and scalars
    document.where("axes", "algorithm", 2)             "matrix.yaml:14: "

Three things differ from PyYAML's safe loader: a key that is written twice is an error (PyYAML keeps the last one in
silence); `1e-3` is a number, as YAML 1.2 and everybody's intuition have it; and what a file or a value may come to is bounded,
so that reading ends soon and small. Anchors, aliases and merge keys (`<<`) work.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from vrambench.methods.errors import ConfigurationError, brief, shown

Key = str | int
MERGE = "tag:yaml.org,2002:merge"
PLAIN_LIST = "tag:yaml.org,2002:seq"
PLAIN_MAPPING = "tag:yaml.org,2002:map"

MOST_BYTES = 2**18
MOST_DEPTH = 30
"""Lists and mappings inside each other."""
MOST_VALUES = 100_000
"""Keys and values, each as often as aliases repeat it."""
LONGEST_NUMBER = 100
"""Characters of a number, so that no number is too long to be shown or too large for a float."""


class _Bounded(yaml.composer.Composer):
    """A limit to nesting."""

    depth = 0
    peek_event: Callable[[], Any]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MOST_DEPTH} lists or mappings inside each other",
                problem_mark=self.peek_event().start_mark,
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Loader(_Bounded, yaml.SafeLoader):
    """PyYAML's safe loader, with YAML 1.2's floats and a limit to nesting."""


_LOADERS: tuple[Any, ...] = (Loader,)
"""In the order in which they are asked."""

if yaml.__with_libyaml__:

    class QuickLoader(_Bounded, yaml.CSafeLoader):
        """The same over libyaml's parser, ten times as fast. Where it finds a mistake, `Loader` reads anew and words it."""

        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            _Bounded.__init__(self)

    _LOADERS = (QuickLoader, Loader)

for _loader in _LOADERS:
    _loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )


@dataclass(frozen=True)
class Document:
    """`name`: the file, as errors call it. `data`: what it holds. `lines`: of the key or list item at each path, from
    1. Of a command line: `bare`, the options that stand without a value; `several`, those of its starter by which several GPUs
    train."""

    name: str
    data: Any
    lines: Mapping[tuple[Key, ...], int]
    bare: Collection[Key] = ()
    several: Mapping[str, Any] = field(default_factory=dict)

    def line(self, *path: Key) -> int:
        """The line of what stands at `path`, or of the nearest thing around it that was written."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)

    def where(self, *path: Key) -> str:
        """How an error about `path` begins: `matrix.yaml:14: `; of a command line, `sft.py: `."""
        if not self.lines:
            return f"{self.name}: {'without a value, ' if path and path[0] in self.bare else ''}"
        return f"{self.name}:{self.line(*path)}: "

    def error(self, path: tuple[Key, ...], message: str) -> ConfigurationError:
        """An error about what stands at `path`."""
        return ConfigurationError(f"{self.where(*path)}{message}", field=dotted(path) or None, line=self.line(*path))


def dotted(path: tuple[Key, ...]) -> str:
    """`profiles.smoke.include[2]`, for people."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{brief(key)}" if text else brief(key)
    return text


def load(path: Path) -> Document:
    """What the YAML file at `path` holds. Raises ConfigurationError, with file and line, where it cannot be read."""
    read = _parsed(read_text(path), str(path))
    return replace(read, data=copy.deepcopy(read.data))  # whoever asked may change it


def read_text(path: Path) -> str:
    """The text of the file at `path`, which is read to a bound. Raises ConfigurationError where that cannot be."""
    name = brief(str(path), 300)
    try:
        if path.exists() and not path.is_file() and not path.is_dir() and not _open_descriptor(path):
            raise ConfigurationError(f"{name}: is not a regular file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigurationError(f"{name}: has more than {MOST_BYTES:,} bytes")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name}: is not a text file (no UTF-8 at byte {error.start})") from None
    except OSError as error:
        raise ConfigurationError(f"{name}: cannot be read: {error.strerror or error}") from None


def _open_descriptor(path: Path) -> bool:
    """Whether `path` names what this process has open already, as a shell's `<(...)` does: reading it waits for nobody to come."""
    return path.parts[:2] in (("/", "dev"), ("/", "proc")) and path.is_fifo()


def parse(text: str, name: str) -> Document:
    """What YAML `text` holds; `name` is what errors call it."""
    if len(text) > MOST_BYTES:
        raise _error(name, 1, f"more than {MOST_BYTES:,} characters")
    for quick in _LOADERS[:-1]:
        with contextlib.suppress(yaml.YAMLError, ValueError, OverflowError):
            return _read(quick(text), name)
    loader = None
    try:
        loader = Loader(text)
        return _read(loader, name)
    except yaml.MarkedYAMLError as error:
        raise _explained(error, name) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise _error(name, line, f"character {text[error.position]!r} is not allowed") from None
    except ConfigurationError:
        raise
    except (ValueError, OverflowError):  # chr(), of which PyYAML's scanner asks whatever \\U is followed by
        raise _error(name, loader.line + 1 if loader else 1, "an escape that stands for no character") from None


def _read(loader: Any, name: str) -> Document:
    lines: dict[tuple[Key, ...], int] = {}
    node = loader.get_single_node()
    return Document(name, None if node is None else _Reader(loader, name, lines).read(node, ()), lines)


_parsed = lru_cache(maxsize=8)(parse)
"""A process that answers many questions reads the same files again and again."""


def parse_value(text: str) -> Any:
    """One value as YAML reads it: `4`, `true`, `[q_proj, v_proj]`, `1e-3`. Raises ValueError with what follows the value in a
    sentence: `is not a YAML value (...)`."""
    try:
        return parse(text, "").data
    except ConfigurationError as error:
        raise ValueError(f"is not a YAML value ({error.message})") from None


def _explained(error: yaml.MarkedYAMLError, name: str) -> ConfigurationError:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or "not YAML"
    if "'\\t'" in problem:
        problem = "a tab where YAML wants spaces"
    elif "another document" in problem:
        problem = "a second document begins here; one file holds one"
    elif error.context and name:
        problem = f"{problem} ({error.context})"
    return _error(name, mark.line + 1 if mark else 1, brief(problem, 300))


def _error(name: str, line: int, message: str) -> ConfigurationError:
    """An error on a line of the file called `name`; without a name it is about one value, which has no lines."""
    return ConfigurationError(f"{name}:{line}: {message}" if name else message, line=line)


class _Reader:
    """Builds data from nodes and notes the line of every key and item."""

    def __init__(self, loader: Any, name: str, lines: dict[tuple[Key, ...], int]) -> None:
        self._loader = loader
        self._name = name
        self._lines = lines
        self._open: list[yaml.Node] = []
        self._values = 0

    def read(self, node: yaml.Node, path: tuple[Key, ...]) -> Any:
        self._count(node)
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if any(node is outer for outer in self._open):
            raise self._error(node, f"{dotted(path) or 'this'} is an alias of what it stands in")
        if node.tag not in (PLAIN_LIST, PLAIN_MAPPING):
            raise self._error(node, f"the tag {shown(node.tag)} has no meaning here")
        self._open.append(node)
        data: Any
        if isinstance(node, yaml.SequenceNode):
            data = [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        else:
            data = {}
            for key, key_node, value in self._pairs(node):
                self._lines[(*path, key)] = key_node.start_mark.line + 1
                data[key] = self.read(value, (*path, key))
        self._open.pop()
        return data

    def _count(self, node: yaml.Node) -> None:
        self._values += 1
        if self._values > MOST_VALUES:
            raise self._error(node, f"more than {MOST_VALUES:,} values, counting what aliases repeat")

    def _scalar(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind in ("int", "float") and len(node.value) > LONGEST_NUMBER:
            raise self._error(node, f"a number of {len(node.value):,} characters; at most {LONGEST_NUMBER}")
        try:
            value = self._loader.construct_object(node, deep=True)
        except ValueError as error:
            raise self._error(node, f"{shown(node.value)} cannot be read: {error}") from None
        except (
            AttributeError,
            LookupError,
            TypeError,
        ):  # PyYAML's constructors take for granted that a written tag fits
            raise self._error(node, f"{shown(node.value)} does not fit the tag !!{kind}") from None
        if value == 0 and kind == "float" and re.search("[1-9]", re.split("[eE]", node.value)[0]):
            raise self._error(node, f"{shown(node.value)} is too near to 0 for a floating-point number")
        if value is not None and not isinstance(value, str | int | float | bool):
            raise self._error(node, f"{shown(node.value)} is a {type(value).__name__} to YAML; quote it if it is text")
        return value

    def _pairs(self, node: yaml.Node) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Keys and values: those merged in first, without the ones that the mapping writes itself."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value in node.value:
            self._count(key_node)
            if key_node.tag == MERGE:
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for source in reversed(sources):  # the first one named wins
                    if not isinstance(source, yaml.MappingNode) or source in self._open:
                        raise self._error(value, "'<<' merges mappings (*name of one, or a list of them)")
                    self._open.append(source)
                    merged |= {key: (key_node, held) for key, key_node, held in self._pairs(source)}
                    self._open.pop()
                continue
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if isinstance(key, int) and key_node.value.isdecimal():  # a length, by its digits; nothing else is named so
                key = str(key_node.value)
            if not isinstance(key, str):
                written = shown(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                raise self._error(key_node, f"a key must be a name, not {written}; quote it")
            if key in own:
                first = own[key][0].start_mark.line + 1
                raise self._error(key_node, f"{shown(key)} is written twice (first on line {first})")
            own[key] = (key_node, value)
        yield from ((key, *nodes) for key, nodes in merged.items() if key not in own)
        yield from ((key, *nodes) for key, nodes in own.items())

    def _error(self, node: yaml.Node, message: str) -> ConfigurationError:
        return _error(self._name, node.start_mark.line + 1, message)


def as_yaml(value: object) -> str:
    """A setting as `--set` reads it: one line of YAML."""
    return _scalar_as_yaml(value) if isinstance(value, str | int | float) else _as_yaml(value)


def _as_yaml(value: object) -> str:
    text = _one_line(_by_number(value), allow_unicode=True)
    # A plain word may be read as a number (1e5), or its unusual blanks be lost; quoted and escaped, it is safe.
    return text if parse_value(text) == value else _one_line(value, default_style='"')


def _by_number(value: object) -> object:
    """A mapping by digits, as of lengths, with numbers for keys, which need no quotes: they are read as digits again."""
    if isinstance(value, Mapping) and all(str(key).isdecimal() and str(int(key)) == key for key in value):
        return {int(key): held for key, held in value.items()}
    return value


_scalar_as_yaml = lru_cache(maxsize=2**14, typed=True)(_as_yaml)  # most cells have the same few


def _one_line(value: object, **style: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=2**31, **style)
    return text.removesuffix("...\n").rstrip("\n")
