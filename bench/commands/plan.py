"""`vrambench plan`: what a matrix comes to, before anything runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from vrambench.bench.commands.cluster import LOCAL, PredictOn, check_on, pool_on
from vrambench.bench.commands.early import load
from vrambench.bench.commands.selectors import with_selectors
from vrambench.bench.commands.shared import (
    AllocConf,
    Json,
    MatrixPath,
    NoCache,
    cards_named,
    check_device,
    device_here,
    has_bf16,
    planned_for,
    predictions,
    stdout_kept_clean,
)
from vrambench.bench.predict.alloc_conf import read
from vrambench.methods.errors import ConfigurationError, UnknownValue

SORTED = ("peak", "room")
"""What --sort takes: `plan.ORDERS`."""

if TYPE_CHECKING:
    from vrambench.bench.plan.selection import Selection

Device = Annotated[
    str, typer.Option("--device", help="The device whose rules hold: auto, cpu, cuda, cuda:N.", metavar="DEVICE")
]
Predict = Annotated[
    bool | None,
    typer.Option(
        "--predict/--no-predict",
        help="Predict each valid cell's peak on CUDA.",
        show_default="predict where the rules are CUDA's",
    ),
]
Sort = Annotated[
    str | None,
    typer.Option(
        help="peak: least memory first; room: most room under its budget first.",
        metavar="peak|room",
        show_default="as the matrix has them",
    ),
]


@with_selectors()
def plan(
    matrix: MatrixPath = None,
    *,
    selection: Selection,
    device: Device = "auto",
    predict: Predict = None,
    sort: Sort = None,
    alloc_conf: AllocConf = None,
    no_cache: NoCache = False,
    on: PredictOn = LOCAL,
    as_json: Json = False,
) -> None:
    """List the cells: valid or not, and why.

    A cell is valid, and then predicted to fit or not, or a rule forbids it.

    Naming all five axes asks for every combination of the values named: the matrix' exclude and coverage then leave none
    out, and entries of its include that name all five axes are left out."""
    check_device(device)
    if sort is not None and sort not in SORTED:
        raise UnknownValue("--sort", sort, SORTED)
    if sort is not None and predict is False:
        raise ConfigurationError("--sort: cells are sorted by what is predicted; leave --no-predict out", field="sort")
    check_on(on)
    loaded = load(matrix, selection)
    if alloc_conf is not None:
        read(alloc_conf)
    with stdout_kept_clean() as out:
        # Unlike one to run on, a device to plan for need not be there.
        name = device_here(device) if device == "auto" else device
        cards = cards_named(selection, loaded)
        by_budget = name.startswith("cuda") and any(cards)
        planned = planned_for(loaded, selection, name, bf16=None if by_budget else has_bf16(name))
        if predict or (predict is None and (sort or planned.device == "cuda")):
            with pool_on(on) as pool:
                card = cards[0] if len(cards) == 1 else None
                ask = predictions(card, alloc_conf, planned.left_out, no_cache=no_cache, pool=pool, own_process=True)
                planned = planned.predicted(ask(planned.valid, None))
        if sort:
            planned = planned.sorted_by(sort)
        if as_json:
            print(json.dumps(planned.document(selection.read_as), indent=1), file=out)
        else:
            from vrambench.reports.text.answers import print_plan
            from vrambench.reports.text.config import print_config

            if planned.config:
                print_config(planned.config, out)
            print_plan(planned, out)
