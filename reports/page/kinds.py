"""The hues of what fills memory, the same in every chart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vrambench.reports.filled import BEYOND, LITTLE, REST, WHOLE
from vrambench.reports.rows import Row

# One hue per counted kind; the policy strongest, further roles lighter.
KIND_HUES = {
    "weights": ("#1f6fb0", "#5b9fd4", "#93c3e6", "#c0dcf0"),
    "gradients": ("#d55e00", "#e98e4e", "#f2b48a", "#f7d3bc"),
    "optimizer": ("#00805d", "#3aab8a", "#7fcbb3", "#b5e2d4"),
}
OTHER_HUES = {
    **{
        "kv_cache": "#f0c419",
        "activations": "#8a63b8",
        "logits_and_loss": "#c65b9a",
        "backward_temporaries": "#a5306b",
    },
    **{
        "step_temporaries": "#5aa469",
        "workspace": "#7a6a4f",
        "gathered_weights": "#2a4d8f",
        "engine_buffers": "#3d8f9c",
    },
    **{"load_temporaries": "#9db8c9", "save_temporaries": "#c9b79d", "data": "#6f6f6f"},
}
OWN_HUE = "#444444"
"""Of kinds that a job's own code names."""
REST_HUES = {LITTLE: "#d3c8e3", REST: "#b7a6cf", WHOLE: "#b0b0b0", BEYOND[0]: "#9a9a9a", BEYOND[1]: "#c4c4c4"}


def colours(rows: Sequence[Row], present: Iterable[str]) -> dict[str, str]:
    """The hue of each part, in the order in which bars stack them."""
    roles = list(dict.fromkeys(role for row in rows if row.result for role in row.result.roles))
    of_roles = {
        f"{role} {kind}": of[min(place, len(of) - 1)]
        for kind, of in KIND_HUES.items()
        for place, role in enumerate(roles)
    }
    bare = {kind: of[-1] for kind, of in KIND_HUES.items()}
    known = of_roles | bare | OTHER_HUES | REST_HUES
    own = {name: OWN_HUE for name in present if name not in known}
    return {name: hue for name, hue in (of_roles | bare | OTHER_HUES | own | REST_HUES).items() if name in set(present)}
