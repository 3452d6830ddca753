"""Classes of options that are read from files' text, against the classes themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from vrambench.methods.axes import AXES
from vrambench.methods.cell import option_namespaces
from vrambench.methods.written_options import option_names

FAMILIES = {name for registry in AXES.values() for name in registry.families}
OPTIONS = {space: kind for space, kind in option_namespaces().items() if space not in FAMILIES}
WRONG = [
    ("ppo", {"epochs": "x"}),
    ("ppo", {"kl_estimator": "k4"}),
    ("galore", {"target_modules": 4}),
    ("oft", {"r": 8}),
    ("ia3", {"feedforward_modules": 3}),
    ("dpo", {"label_smoothing": 0.1, "loss_type": "ipo"}),
    ("zero", {"stage": -1}),
]
"""Of each kind: a bound, a choice, a type of another file's, and what the classes' own functions refuse."""
READ = """
import json, sys
from pydantic import ValidationError
from vrambench.methods.written_options import option_names, written_options

def refused(space, data):
    try:
        written_options(space)(**data)
    except ValidationError as error:
        return [(one["loc"], one["type"], one["msg"]) for one in error.errors()]

told = {
    "schemas": {space: written_options(space).model_json_schema() for space in option_names()},
    "refused": [refused(space, data) for space, data in json.loads(sys.argv[1])],
    "torch": "torch" in sys.modules,
    "unknown": written_options("zerro"),
}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def read() -> dict[str, Any]:
    """What a process has that never imported the files."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", READ, json.dumps(WRONG)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_names_are_those_of_the_classes() -> None:
    names = {space: fields for space, fields in option_names().items() if space not in FAMILIES}
    assert names == {space: tuple(kind.model_fields) for space, kind in OPTIONS.items()}


def test_the_classes_are_the_same_and_take_no_torch(read: dict[str, Any]) -> None:
    schemas = {space: schema for space, schema in read["schemas"].items() if space not in FAMILIES}
    assert schemas == {space: json.loads(json.dumps(kind.model_json_schema())) for space, kind in OPTIONS.items()}
    assert (read["torch"], read["unknown"]) == (False, None)


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_they_refuse_the_same(case: int, read: dict[str, Any]) -> None:
    space, data = WRONG[case]
    with pytest.raises(ValidationError) as caught:
        OPTIONS[space](**data)
    errors = [[list(one["loc"]), one["type"], one["msg"]] for one in caught.value.errors()]
    assert read["refused"][case] == errors
