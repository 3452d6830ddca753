"""Floating-point precisions: weights of one type, with or without autocast over fp32 weights."""

from __future__ import annotations

import torch

from vrambench.methods.precision import Precision

FP32 = Precision(summary="weights and products in fp32", weights=torch.float32, bits=32)
BF16 = Precision(
    summary="weights and products in bf16, no fp32 copy", weights=torch.bfloat16, bits=16, fields=("autocast",)
)
FP16 = Precision(
    summary="weights and products in fp16, no fp32 copy, no loss scaling",
    weights=torch.float16,
    bits=16,
    fields=("autocast",),
)
BF16_AMP = Precision(
    summary="fp32 weights, products in bf16 (autocast)", weights=torch.float32, amp=torch.bfloat16, bits=32
)
FP16_AMP = Precision(
    summary="fp32 weights, products in fp16 (autocast), loss scaling",
    weights=torch.float32,
    amp=torch.float16,
    bits=32,
)
