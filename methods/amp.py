"""Autocast and loss scaling for the simulated device, for which torch has neither.

    with CastPolicy(torch.bfloat16, CUDA_LISTS):        on meta tensors what torch.autocast("cuda", torch.bfloat16) does on CUDA
        loss = model(tokens)
    enable({"use_reentrant": False, "context_fn": recompute_contexts})          gradient checkpointing, under the same policy
    scaler = SimulatedScaler(enabled=True)                                       torch's GradScaler that never looks

Real autocast is a dispatch key: while it is on, the operators on its list first reach a kernel that casts their inputs, above
autograd, and then run without it. An operator that is not on the list but made of others (cross-entropy on CUDA: log_softmax
and nll_loss) finds them cast. Here it is the same mechanism: kernels for meta tensors under the autocast key that torch keeps
for devices from outside (PrivateUse1). So what decides is the operator, however Python reached it. Source of all rules:
ATen/autocast_mode.h and ATen/autocast_mode.cpp, torch 2.8 to 2.13.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from types import TracebackType
from typing import Any, Literal

import torch
from torch._C import DispatchKeySet
from torch.amp import GradScaler
from torch.utils.weak import WeakTensorKeyDictionary

Rule = Literal["lower", "fp32", "fp32_output", "fp32_norm", "promote", "banned"]

KEY_NAME = "AutocastPrivateUse1"
KEY = torch._C._dispatch_key_parse(KEY_NAME)

# What stands for scaled_dot_product_attention where nothing is computed (methods/models/kernels.py), and is cast as that is.
ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_flash_attention_forward",
)


@dataclass(frozen=True)
class CastLists:
    """The operators (aten names, overload after a dot, blanks between) that autocast of one kind of device casts for.

    `device`: that kind. `key`: the dispatch key under which torch itself registers them. `lower`: inputs to the lower precision.
    `fp32`: inputs to fp32. `fp32_output`: inputs as they are, output type fp32 unless the call names one. `fp32_norm`: the same,
    through the overload that takes an output type. `promote`: inputs to the widest type among them. `banned`: refused.
    """

    device: str
    key: str
    lower: str
    fp32: str
    fp32_output: str
    fp32_norm: str
    promote: str
    banned: str

    def known(self) -> dict[str, Rule]:
        """The rule of every operator on these lists."""
        kinds: tuple[Rule, ...] = ("lower", "fp32", "fp32_output", "fp32_norm", "promote", "banned")
        return {name: kind for kind in kinds for name in getattr(self, kind).split()}


# AT_FORALL_* in autocast_mode.h, and the two cudnn_convolutions and what is banned from autocast_mode.cpp.
CUDA_LISTS = CastLists(
    device="cuda",
    key="AutocastCUDA",
    lower="""
        _convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input
        conv_transpose3d.input convolution cudnn_convolution cudnn_convolution_transpose prelu addmm addmv addr matmul einsum mm
        mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell
        lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell _scaled_dot_product_flash_attention
        scaled_dot_product_attention
    """,
    fp32="""
        acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar pow.Tensor_Tensor
        pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim
        cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss
        smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
        multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d
        _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d
        upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
        _upsample_bicubic2d_aa
    """,
    fp32_output="""
        prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
        linalg_matrix_norm.str_ord sum sum.dim_IntList
    """,
    fp32_norm="norm.Scalar norm.ScalarOpt_dim",
    promote="addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add",
    banned="binary_cross_entropy",
)

# TORCH_LIBRARY_IMPL(aten, AutocastCPU, m) in autocast_mode.cpp.
CPU_LISTS = CastLists(
    device="cpu",
    key="AutocastCPU",
    lower="""
        conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding bmm mm linalg_vecdot baddbmm addmm
        _addmm_activation addbmm linear _convolution.deprecated matmul conv_tbc mkldnn_rnn_layer conv_transpose1d
        conv_transpose2d.input conv_transpose3d.input prelu scaled_dot_product_attention
        _native_multi_head_attention
    """,
    fp32="""
        avg_pool3d binary_cross_entropy grid_sampler polar prod prod.dim_int quantile quantile.scalar nanquantile
        nanquantile.scalar stft stft.center cdist grid_sampler_2d _grid_sampler_2d_cpu_fallback grid_sampler_3d trace
        view_as_complex cholesky cholesky_inverse cholesky_solve inverse lu_solve orgqr ormqr pinverse max_pool3d max_unpool2d
        max_unpool3d adaptive_avg_pool3d reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d replication_pad3d
        mse_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss poisson_nll_loss smooth_l1_loss
        cross_entropy_loss l1_loss huber_loss margin_ranking_loss soft_margin_loss triplet_margin_loss multi_margin_loss
        ctc_loss.IntList ctc_loss.Tensor kl_div multilabel_margin_loss binary_cross_entropy_with_logits fft_fft fft_ifft
        fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2 fft_rfftn fft_irfftn fft_hfft fft_ihfft
        linalg_cond linalg_cond.p_str linalg_matrix_rank linalg_matrix_rank.tol_tensor linalg_matrix_rank.atol_rtol_tensor
        linalg_matrix_rank.atol_rtol_float linalg_solve linalg_cholesky linalg_svdvals linalg_eigvals linalg_eigvalsh
        linalg_inv linalg_householder_product linalg_tensorinv linalg_tensorsolve fake_quantize_per_tensor_affine geqrf
        _lu_with_info qr svd triangular_solve fractional_max_pool2d fractional_max_pool3d adaptive_max_pool3d
        multilabel_margin_loss_forward linalg_qr linalg_cholesky_ex linalg_svd linalg_eig linalg_eigh linalg_lstsq
        linalg_inv_ex
    """,
    fp32_output="",
    fp32_norm="",
    promote="stack cat index_copy",
    banned="",
)

LISTS = {lists.device: lists for lists in (CUDA_LISTS, CPU_LISTS)}


class CastPolicy:
    """Inside, meta tensors are cast as torch.autocast with `dtype` casts those of the `lists`' device; nothing is cast where
    `dtype` is None, as in torch.autocast(enabled=False).

    The fp32 weights that it casts are kept in `dtype` until the outermost policy is left, as autocast keeps them.
    """

    def __init__(self, dtype: torch.dtype | None, lists: CastLists = CUDA_LISTS) -> None:
        self.dtype = dtype
        self.lists = lists
        self.rules = _rules(lists) if dtype else {}
        self._kept: WeakTensorKeyDictionary | None = None
        self._exits = ExitStack()

    def __enter__(self) -> CastPolicy:
        outer = _current.get()
        with ExitStack() as exits:
            self._kept = WeakTensorKeyDictionary() if outer is None else outer._kept
            exits.callback(setattr, self, "_kept", None)
            exits.callback(_current.reset, _current.set(self))
            if outer is None:
                exits.enter_context(_regions_of_transformers())
            exits.enter_context(_key(on=self.dtype is not None))
            exits.enter_context(_told(self.dtype, self.lists.device))
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exits.close()

    def call(self, rule: Rule, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`op` as its rule wants it. Raises RuntimeError where autocast of the lists' device would."""
        if rule == "banned":
            raise RuntimeError(f"{op}: unsafe under autocast; use the form that takes logits")
        if rule == "fp32_output":
            return op(*args, **(kwargs | _output_type(op, args, kwargs)))
        if rule == "fp32_norm":
            complete = [*args, *(argument.default_value for argument in op._schema.arguments[len(args) :])]
            overload = {"Scalar": "ScalarOpt_dtype", "ScalarOpt_dim": "ScalarOpt_dim_dtype"}[op._overloadname]
            dtype = torch.float32 if _eligible(args[0]) else args[0].dtype
            return getattr(op.overloadpacket, overload)(*complete, dtype=dtype)
        to = {"lower": self.dtype, "fp32": torch.float32}.get(rule) or self._widest([*args, *kwargs.values()])
        # The last argument first: so do torch's wheels, in which the compiler puts a call's arguments in that order.
        named = {name: self._cast(arg, to) for name, arg in reversed(kwargs.items())}
        return op(*reversed([self._cast(arg, to) for arg in reversed(args)]), **named)

    def _cast(self, arg: Any, dtype: torch.dtype) -> Any:
        """cached_cast: `arg`, or every tensor of the list `arg`, in `dtype` where autocast touches it."""
        if isinstance(arg, list | tuple):
            return [self._cast(item, dtype) for item in arg]
        if not _eligible(arg) or arg.dtype == dtype:
            return arg
        weight = arg.dtype == torch.float32 and arg.requires_grad and arg.is_leaf and not arg._is_view()
        if dtype != self.dtype or not weight or self._kept is None:
            return arg.to(dtype)
        if arg not in self._kept:
            self._kept[arg] = arg.to(dtype)
        return self._kept[arg]

    def _widest(self, args: list[Any]) -> Any:
        """promote_type: fp32 where any argument is, else the lower precision; no other type is expected before fp32."""
        widest = self.dtype
        for tensor in (item for arg in args for item in (arg if isinstance(arg, list | tuple) else [arg])):
            if not _eligible(tensor) or widest == torch.float32:
                continue
            if tensor.dtype not in (torch.float32, self.dtype):
                raise RuntimeError(f"Unexpected floating ScalarType in autocast to {self.dtype}: {tensor.dtype}")
            widest = tensor.dtype
        return widest


def recompute_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The `context_fn` of torch.utils.checkpoint, which takes real autocast from forward to recomputation, for the policy.

    The second context is the policy as it is now. It is entered in backward, outside any policy, so that what it casts of the
    weights is freed at the end of each recomputation; so it is with real autocast.
    """
    policy = _current.get()
    return nullcontext(), CastPolicy(policy.dtype, policy.lists) if policy else CastPolicy(None)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type to which autocast casts on `device` now; None where it is off."""
    if device.type == "meta":
        policy = _current.get()
        return policy.dtype if policy else None
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def forget_casts(device: torch.device) -> None:
    """Lets go of the weights that autocast keeps in the lower precision, before the outermost region is left."""
    if device.type != "meta":
        torch.clear_autocast_cache()
    elif (policy := _current.get()) is not None and policy._kept is not None:
        policy._kept.clear()


class SimulatedScaler(GradScaler):
    """torch's GradScaler, allocation by allocation, for gradients without values: it never finds an overflow, so it steps each
    time and keeps its first scale."""

    def __init__(self, enabled: bool) -> None:
        super().__init__("meta", enabled=enabled)

    def _maybe_opt_step(self, optimizer: Any, optimizer_state: Any, *args: Any, **kwargs: Any) -> float | None:
        return optimizer.step(*args, **kwargs)

    def get_scale(self) -> float:
        return self._init_scale if self._enabled else 1.0


_current: ContextVar[CastPolicy | None] = ContextVar("cast_policy", default=None)


def lower_dtype() -> torch.dtype | None:
    """The type to which the policy at work casts what it lowers; None where there is none."""
    policy = _current.get()
    return policy.dtype if policy else None


def lowered(function: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """`function` of these, as one operator that autocast lowers: the policy at work casts its tensors, and nothing inside it."""
    policy = _current.get()
    if policy is None or policy.dtype is None:
        return function(*args, **kwargs)
    with torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(KEY)):
        made: torch.Tensor = policy.call("lower", function, args, kwargs)
        return made


def _eligible(arg: Any) -> bool:
    """Autocast touches floating tensors of its own device, but not fp64."""
    return isinstance(arg, torch.Tensor) and arg.is_meta and arg.is_floating_point() and arg.dtype != torch.float64


def _output_type(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, torch.dtype]:
    """fp32 as `op`'s output type, where its first argument is eligible and the call names no type."""
    index = next(index for index, argument in enumerate(op._schema.arguments) if argument.name == "dtype")
    named = index < len(args) or kwargs.get("dtype") is not None
    return {} if named or not _eligible(args[0]) else {"dtype": torch.float32}


@cache
def _rules(lists: CastLists) -> dict[str, Rule]:
    """Of the lists, what this torch has on them (they grow from version to version), and the attention that stands for sdpa."""
    registered = set(torch._C._dispatch_get_registrations_for_dispatch_key(lists.key))
    rules: dict[str, Rule] = {name: rule for name, rule in lists.known().items() if f"aten::{name}" in registered}
    rules |= dict.fromkeys(ATTENTION, "lower")
    for name in rules:
        _intercept(name)
    return rules


@cache
def _library() -> tuple[torch.library.Library, ...]:
    """Where the kernels are registered, for the life of the process: the rest of the operators falls through."""
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, KEY_NAME)
    return torch.library.Library("aten", "IMPL"), everything


@cache
def _intercept(name: str) -> None:
    """Lets the policy at work call the operator `name`."""
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(keys: DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        policy = _current.get()
        rule = policy.rules.get(name) if policy else None
        if policy is None or rule is None:
            return op.redispatch(keys.remove(KEY), *args, **kwargs)
        with torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(KEY)):
            return policy.call(rule, op, args, kwargs)

    _library()[0].impl(name, kernel, KEY_NAME, with_keyset=True)


@contextmanager
def _key(*, on: bool) -> Iterator[None]:
    """This thread's operators go through KEY, or do not."""
    tls = torch._C
    included = tls._dispatch_tls_is_dispatch_key_included(KEY)
    excluded = tls._dispatch_tls_is_dispatch_key_excluded(KEY)
    tls._dispatch_tls_set_dispatch_key_included(KEY, on)
    tls._dispatch_tls_set_dispatch_key_excluded(KEY, not on)  # autocast keys are excluded from the start
    try:
        yield
    finally:
        tls._dispatch_tls_set_dispatch_key_included(KEY, included)
        tls._dispatch_tls_set_dispatch_key_excluded(KEY, excluded)


@contextmanager
def _told(dtype: torch.dtype | None, device: str) -> Iterator[None]:
    """Who asks torch whether autocast is on for `device` hears what holds here: PEFT's adapters of quantised layers ask for CUDA,
    and cast their inputs and outputs where it is off. Tensors on meta are not `device`'s, so torch itself casts none of them."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, dtype is not None)
    torch.set_autocast_dtype(device, dtype or before[1])
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


@lru_cache(maxsize=1)
def _importers(name: str, modules: int) -> list[dict[str, Any]]:
    """The names of every module that has imported `name` from transformers' utilities, where so many modules are loaded: looked
    for again only when there are more."""
    parts = [(path, vars(module)) for path, module in list(sys.modules.items()) if path.startswith("transformers.")]
    return [names for path, names in parts if name in names and not path.startswith("transformers.utils")]


@contextmanager
def _regions_of_transformers() -> Iterator[None]:
    """transformers' `maybe_autocast(device, enabled=False)` (rotary embeddings, routers) does nothing on meta; inside, it does."""
    from transformers.utils.generic import maybe_autocast

    def region(device_type: str, *args: Any, enabled: bool = True, **kwargs: Any) -> AbstractContextManager[Any]:
        simulated = device_type == "meta" and not enabled
        return CastPolicy(None) if simulated else maybe_autocast(device_type, *args, enabled=enabled, **kwargs)

    using = _importers("maybe_autocast", len(sys.modules))
    for names in using:
        names["maybe_autocast"] = region
    try:
        yield
    finally:
        for names in using:
            names["maybe_autocast"] = maybe_autocast
