"""People's own configurations as a matrix of one cell: what `--config` names.

    matrix = read("sft.yaml", chosen)
    matrix.config.called, matrix.config.keys         "TRL's SFTConfig", and how each key was read

A format is a file here, and a line in FORMATS. Nothing here imports torch or transformers, executes anything or asks the network.
"""

from __future__ import annotations

from pathlib import Path

from vrambench.bench.plan.configs import axolotl, deepspeed, llama_factory, torchtune, training_arguments, trl
from vrambench.bench.plan.configs.command_lines import command_line, is_command_line
from vrambench.bench.plan.configs.draft import Draft, Format, Refused
from vrambench.bench.plan.configs.files import load, unquoted
from vrambench.bench.plan.configs.keys import Chosen, Given
from vrambench.bench.plan.document import Document
from vrambench.bench.plan.matrix import Matrix
from vrambench.methods.errors import ConfigurationError, UnknownValue

FORMATS: tuple[Format, ...] = (
    training_arguments.FORMAT,
    *trl.FORMATS,
    deepspeed.FORMAT,
    axolotl.FORMAT,
    llama_factory.FORMAT,
    torchtune.FORMAT,
)
COMMAND_LINES = {one.name.removeprefix("trl-"): one.name for one in trl.FORMATS}
SCRIPTS = COMMAND_LINES | {"reward_modeling": "trl-reward"}
"""TRL's own scripts, by their names; another's keys tell its format."""


def read(source: str, chosen: Chosen, named: str | None = None) -> Matrix:
    """The matrix of the file, or the trainer's command line, `source`. `named`: the format, where --config-format says it. Raises
    ConfigurationError for what cannot be read, and Refused, with file, line and key, for all that is wrong in it."""
    names = [one.name for one in FORMATS]
    named = named and named.replace("_", "-")
    if named is not None and named not in names:
        raise UnknownValue("--config-format", named, names)
    if is_command_line(source) and not Path(source).exists():
        command, document = command_line(source)
        if document.name == f"trl {command}" and command not in COMMAND_LINES:
            raise UnknownValue("--config trl", command, COMMAND_LINES)
        named = named or SCRIPTS.get(command)
    else:
        document = load(Path(source))
    form = next(one for one in FORMATS if one.name == named) if named else detected(document, chosen)
    if form.flat:
        document = form.flat(document)
    if form.unquoted:
        document = unquoted(document)
    draft = Draft(Given(document, form.table), chosen)
    try:
        form.draft(draft)
        for option, value in document.several.items():
            draft.doubt_starter(option, value, training_arguments.SEVERAL)
        config = draft.done(form.name, form.called)
    except ConfigurationError as error:
        told = [*draft.given.mistakes.values(), *getattr(error, "messages", [error.message]), *draft.slips(form.called)]
        raise Refused(told, Matrix(document.name, draft.layer(), {}, {})) from None
    return Matrix(document.name, draft.layer(), {}, {}, config)


def detected(document: Document, chosen: Chosen) -> Format:
    """Of those that have marks among the document's keys, else of those without marks, the format that knows most of its keys, and
    at least half of them. Of several, the one whose trainer is that of the command line's algorithm, or TrainingArguments, of
    which TRL's are kinds."""
    if "compute_environment" in document.data:
        raise ConfigurationError(
            f"{document.name}: is accelerate's, which says how processes are started; --config takes the trainer's own file"
        )
    marked = [one for one in FORMATS if one.marks & document.data.keys()]
    known = {
        one: sum(key in _keys(one) for key in document.data)
        for one in marked or FORMATS
        if one in marked or not one.marks
    }
    most = max(known.values())
    best = [one for one, count in known.items() if count == most]
    names = ", ".join(one.name for one in FORMATS)
    if not document.data or most * 2 < len(document.data):
        told = f"its keys are those of no format that is known here ({names})"
        nearest = f"; {best[0].name} has {most} of its {len(document.data)}" if most else ""
        raise ConfigurationError(f"{document.name}: {told}{nearest}; --config-format says which it is")
    if len(best) > 1:
        trained = chosen.axes.get("algorithm", "").removeprefix("trl_")
        best = [one for one in best if one.algorithm == trained] or best
    best = [one for one in best if one is training_arguments.FORMAT] or best
    if len(best) > 1:
        *others, last = (one.name for one in best)
        by_algorithm = f" or --algorithm {best[0].algorithm}" if best[0].algorithm else ""
        raise ConfigurationError(
            f"{document.name}: may be a file of {', '.join(others)} or {last}, whose keys are the same here; say which it is, as "
            f"by --config-format {best[0].name}{by_algorithm}"
        )
    return best[0]


def _keys(form: Format) -> frozenset[str]:
    """As a file has them: of sections, the first part."""
    every = form.table.names | form.table.renamed.keys() | form.table.old
    return frozenset(key.partition(".")[0] for key in every) if form.flat else every
