"""The published JSON Schemas, for tests of what is written and printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "schema"


def validate(name: str, document: Any) -> None:
    """Raises jsonschema.ValidationError where `document` does not fit docs/schema/`name`.json."""
    jsonschema.validate(document, json.loads((SCHEMA / f"{name}.json").read_text()))
