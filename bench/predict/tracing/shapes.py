"""Remembers what operators give on the simulated device: most of a job's calls were made before, with the same shapes.

A result is remembered only where that is safe: the operator's schema says that it gives new tensors and changes nothing, and the
first call with these arguments did so. Operators that change values in place have nothing to do where there are no values.
"""

from __future__ import annotations

from typing import Any

import torch

from vrambench.bench.measure.meters.storages import NESTED, tensors_of

META = torch.device("meta")
# The same on meta, where the first goes a long way round through Python.
UNSAFE_VIEW, VIEW = torch.ops.aten._unsafe_view.default, torch.ops.aten.view.default

# In place, on tensors that keep their shapes and their storage: on meta there is nothing to change.
CHANGES_VALUES_ONLY = frozenset(
    f"aten.{name}_.{overload}"
    for names, overloads in (
        (
            "_foreach_add _foreach_sub _foreach_mul _foreach_div _foreach_lerp _foreach_addcmul _foreach_addcdiv"
            " _foreach_sqrt _foreach_neg _foreach_zero _foreach_copy _foreach_clamp_max _foreach_maximum",
            "default List Scalar ScalarList Tensor",
        ),
        (
            "add sub mul div lerp addcmul addcdiv copy zero fill sqrt neg clamp clamp_min pow exp rsqrt"
            " normal uniform exponential random masked_fill",
            "default Tensor Scalar from to",
        ),
    )
    for name in names.split()
    for overload in overloads.split()
)


class KnownShapes:
    """Answers operators' calls on meta tensors."""

    def __init__(self) -> None:
        self._results: dict[tuple[Any, ...], Any] = {}
        self._pure: dict[int, bool] = {}
        self._in_place: dict[int, bool] = {}

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func(*args, **kwargs)` gives. It is called only where that is not known."""
        operator = id(func)  # operators live as long as torch does, and their own hashes cost more than all else here
        pure = self._pure.get(operator)
        if pure is None:
            pure = self._pure[operator] = _makes_new_tensors(func)
            self._in_place[operator] = str(func) in CHANGES_VALUES_ONLY
        if not pure:
            if func is UNSAFE_VIEW:
                func = VIEW
            if self._in_place[operator] and _all_meta(args[0]):
                return args[0] if func._schema.returns else None
            return func(*args, **kwargs)
        try:
            key = (operator, _key(args), _key(tuple(kwargs.items())) if kwargs else None)
            known = self._results.get(key)
        except (TypeError, _NotKnown):  # unhashable, or tensors of another device
            return func(*args, **kwargs)
        if known is not None:
            return _made(known)
        result = func(*args, **kwargs)
        described = _description(result, args, kwargs)
        if described is None:
            self._pure[operator] = False
        else:
            self._results[key] = described
        return result


class _NotKnown(Exception):
    """An argument is a tensor of another device: nothing is remembered."""


def _makes_new_tensors(func: Any) -> bool:
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.returns:
        return False
    return all(argument.alias_info is None for argument in (*schema.arguments, *schema.returns))


def _key(values: Any) -> Any:
    parts: list[Any] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            if not value.is_meta:
                raise _NotKnown
            parts.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, NESTED):
            parts.append(_key(value))
        else:
            parts.append((type(value), value))
    return tuple(parts)


def _description(result: Any, args: Any, kwargs: Any) -> Any:
    """The tensors of `result` as shapes, None where one of them is no new tensor of the simulated device."""
    items = result if isinstance(result, tuple | list) else (result,)
    taken = {tensor.untyped_storage()._cdata for tensor in tensors_of((args, tuple(kwargs.values())))}
    described: list[Any] = []
    for item in items:
        if not isinstance(item, torch.Tensor):
            described.append((None, item))
            continue
        storage = item.untyped_storage()
        if not item.is_meta or storage._cdata in taken or type(item) is not torch.Tensor:
            return None
        taken.add(storage._cdata)  # results that share a storage are not remembered either
        if storage.nbytes() != _extent(item) or item.storage_offset():
            return None
        described.append((item.dtype, item.shape, item.stride()))
    return type(result) if isinstance(result, tuple | list) else None, described


def _extent(tensor: torch.Tensor) -> int:
    """Bytes of a storage that holds `tensor` and no more."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _made(description: Any) -> Any:
    kind, items = description
    made = [
        item[1] if item[0] is None else torch.empty_strided(item[1], item[2], dtype=item[0], device=META)
        for item in items
    ]
    return made[0] if kind is None else kind(made)


def _all_meta(changed: Any) -> bool:
    return all(tensor.is_meta for tensor in (changed if isinstance(changed, list | tuple) else (changed,)))
