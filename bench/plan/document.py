"""YAML that knows its lines, so that an error can say where it stands.

    document = load(Path("matrix.yaml"))
    document.data                                      plain lists, dictionaries and scalars
    document.where("axes", "algorithm", 2)             "matrix.yaml:14: "

Two things differ from PyYAML's safe loader: a key that is written twice is an error (PyYAML keeps the last one in
silence), and `1e-3` is a number, as YAML 1.2 and everybody's intuition have it. Anchors, aliases and merge keys (`<<`)
work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vrambench.methods.errors import ConfigurationError

Key = str | int
MERGE = "tag:yaml.org,2002:merge"
PLAIN_LIST = "tag:yaml.org,2002:seq"
PLAIN_MAPPING = "tag:yaml.org,2002:map"


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with YAML 1.2's floats."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


@dataclass(frozen=True)
class Document:
    """`name`: the file, as errors call it. `data`: what it holds. `lines`: of the key or list item at each path, from
    1."""

    name: str
    data: Any
    lines: Mapping[tuple[Key, ...], int]

    def line(self, *path: Key) -> int:
        """The line of what stands at `path`, or of the nearest thing around it that was written."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)

    def where(self, *path: Key) -> str:
        """How an error about `path` begins: `matrix.yaml:14: `."""
        return f"{self.name}:{self.line(*path)}: "

    def error(self, path: tuple[Key, ...], message: str) -> ConfigurationError:
        """An error about what stands at `path`."""
        return ConfigurationError(f"{self.where(*path)}{message}", field=dotted(path) or None, line=self.line(*path))


def dotted(path: tuple[Key, ...]) -> str:
    """`profiles.smoke.include[2]`, for people."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def load(path: Path) -> Document:
    """What the YAML file at `path` holds. Raises ConfigurationError, with file and line, where it cannot be read."""
    name = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name}: is not a text file (no UTF-8 at byte {error.start})") from None
    except OSError as error:
        raise ConfigurationError(f"{name}: cannot be read: {error.strerror or error}") from None
    return parse(text, name)


def parse(text: str, name: str) -> Document:
    """What YAML `text` holds; `name` is what errors call it."""
    lines: dict[tuple[Key, ...], int] = {}
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        data = None if node is None else _Reader(loader, name, lines).read(node, ())
    except yaml.MarkedYAMLError as error:
        raise _explained(error, name) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        message = f"{name}:{line}: character {text[error.position]!r} is not allowed"
        raise ConfigurationError(message, line=line) from None
    return Document(name, data, lines)


def parse_value(text: str) -> Any:
    """One value as YAML reads it: `4`, `true`, `[q_proj, v_proj]`, `1e-3`. Raises ValueError, in half a sentence."""
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "a character that is not allowed"
        raise ValueError(f"{text!r} is not a YAML value ({problem})") from None
    except ValueError as error:
        raise ValueError(f"{text!r} is not a YAML value ({error})") from None


def _explained(error: yaml.MarkedYAMLError, name: str) -> ConfigurationError:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    problem = error.problem or "not YAML"
    if "'\\t'" in problem:
        problem = "a tab where YAML wants spaces"
    elif error.context:
        problem = f"{problem} ({error.context})"
    return ConfigurationError(f"{name}:{line}: {problem}", line=line)


class _Reader:
    """Builds data from nodes and notes the line of every key and item."""

    def __init__(self, loader: Loader, name: str, lines: dict[tuple[Key, ...], int]) -> None:
        self._loader = loader
        self._name = name
        self._lines = lines
        self._open: list[yaml.Node] = []

    def read(self, node: yaml.Node, path: tuple[Key, ...]) -> Any:
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if any(node is outer for outer in self._open):
            raise self._error(node, f"{dotted(path)} is an alias of what it stands in")
        if node.tag not in (PLAIN_LIST, PLAIN_MAPPING):
            raise self._error(node, f"the tag {node.tag!r} has no meaning here")
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

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self._loader.construct_object(node, deep=True)
        except ValueError as error:
            raise self._error(node, f"{node.value!r} cannot be read: {error}") from None

    def _pairs(self, node: yaml.Node) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Keys and values: those merged in first, without the ones that the mapping writes itself."""
        own: dict[str, yaml.Node] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value in node.value:
            if key_node.tag == MERGE:
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for source in reversed(sources):  # the first one named wins
                    if not isinstance(source, yaml.MappingNode) or source in self._open:
                        raise self._error(value, "'<<' merges mappings (*name of one, or a list of them)")
                    merged |= {key: (key_node, held) for key, key_node, held in self._pairs(source)}
                continue
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise self._error(
                    key_node, f"a key must be a name, not {getattr(key_node, 'value', 'a list')!r}; quote it"
                )
            if key in own:
                first = own[key].start_mark.line + 1
                raise self._error(key_node, f"{key!r} is written twice (first on line {first})")
            own[key] = key_node
        yield from ((key, key_node, value) for key, (key_node, value) in merged.items() if key not in own)
        for key_node, value in node.value:
            if key_node.tag != MERGE:
                yield self._scalar(key_node), key_node, value

    def _error(self, node: yaml.Node, message: str) -> ConfigurationError:
        line = node.start_mark.line + 1
        return ConfigurationError(f"{self._name}:{line}: {message}", line=line)
