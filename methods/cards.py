"""GPUs by name: what they offer to a process, and what of their hardware decides how operators work.

A card's usable capacity is the number that PyTorch's out-of-memory message gives as "total capacity" on it: what the driver
offers, which is less than what the name says. Whatever nobody has published, or we have not measured, is None.

Sources, by the words in each record: "oom" is such a message in a public issue, named, as is what programs show of that number,
or in their words of a public log; "docs" NVIDIA's data sheet (multiprocessors) and the CUDA programming guide (capabilities).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GIB, MIB = 2**30, 2**20

FIRST_BF16 = (8, 0)
"""The compute capability from which on a GPU has bf16 arithmetic."""

DRIVERS_SHARE = 0.05
"""At most so much of a card its driver keeps: a budget of the card's nominal size is a budget of that card."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One model of GPU.

    `marked_bytes`: what its name promises. `usable_bytes`: what the driver offers to a process on an idle card.
    `capability`: CUDA compute capability. `multiprocessors`: how many it has. `context_bytes`: a process of its own with
    nothing but a CUDA context. `outside_bytes`: lowest and highest seen at the end of real jobs outside PyTorch's
    allocator (context, loaded kernels, libraries). `source`: where the numbers come from.
    """

    name: str
    marked_bytes: int
    capability: tuple[int, int]
    multiprocessors: int
    usable_bytes: int | None = None
    context_bytes: int | None = None
    outside_bytes: tuple[int, int] | None = None
    source: str

    @property
    def has_bf16(self) -> bool:
        """Whether it has bf16 arithmetic."""
        return self.capability >= FIRST_BF16


_CARDS = (
    Card(
        name="rtx-3090",
        marked_bytes=24 * GIB,
        capability=(8, 6),
        multiprocessors=82,
        usable_bytes=int(23.68 * GIB),
        context_bytes=256 * MIB,
        outside_bytes=(255 * MIB, 439 * MIB),
        source="oom; bare context and ends of jobs as published for 24 GB cards; docs",
    ),
    Card(
        name="rtx-3080-10gb",
        marked_bytes=10 * GIB,
        capability=(8, 6),
        multiprocessors=68,
        usable_bytes=int(9.78 * GIB),
        source="oom (zai-org/CogVideo 34); docs",
    ),
    Card(
        name="rtx-3060-12gb",
        marked_bytes=12 * GIB,
        capability=(8, 6),
        multiprocessors=28,
        usable_bytes=int(11.75 * GIB),
        source="oom (smy20011/dreambooth-gui 78); docs",
    ),
    Card(
        name="rtx-4090",
        marked_bytes=24 * GIB,
        capability=(8, 9),
        multiprocessors=128,
        usable_bytes=int(23.64 * GIB),
        source="oom (ali-vilab/VGen 104; others give 23.52 to 23.65); docs",
    ),
    Card(
        name="rtx-4070-ti",
        marked_bytes=12 * GIB,
        capability=(8, 9),
        multiprocessors=60,
        usable_bytes=int(11.70 * GIB),
        source="oom (Kwai-Kolors/Kolors 11); docs",
    ),
    Card(
        name="rtx-4060-ti-16gb",
        marked_bytes=16 * GIB,
        capability=(8, 9),
        multiprocessors=34,
        usable_bytes=int(15.55 * GIB),
        source="oom (boson-ai/higgs-audio 48); docs",
    ),
    Card(
        name="a100-40gb",
        marked_bytes=40 * GIB,
        capability=(8, 0),
        multiprocessors=108,
        usable_bytes=int(39.4 * GIB),
        context_bytes=501 * MIB,
        source="oom (39.4 to 39.6, TianheWu/CoSeR 10 gives 39.50); bare context as published; docs",
    ),
    Card(
        name="a100-80gb",
        marked_bytes=80 * GIB,
        capability=(8, 0),
        multiprocessors=108,
        usable_bytes=int(79.15 * GIB),
        outside_bytes=(513 * MIB, 749 * MIB),
        source="oom (lianqi1008/Control-GIC 6 gives 79.14, levihsu/OOTDiffusion 235 79.25); ends of jobs as published; docs",
    ),
    Card(
        name="h100-80gb",
        marked_bytes=80 * GIB,
        capability=(9, 0),
        multiprocessors=132,
        usable_bytes=int(79.1 * GIB),
        outside_bytes=(742 * MIB, 746 * MIB),
        source="oom (vllm-project/vllm 27508 gives 79.11); outside as seen on an H200, the same chip; docs, SXM",
    ),
    Card(
        name="h200",
        marked_bytes=141 * GIB,
        capability=(9, 0),
        multiprocessors=132,
        usable_bytes=150_109_880_320,
        context_bytes=543_162_368,
        outside_bytes=(742 * MIB, 746 * MIB),
        source="measured (results/nvidia-h200: doctor.json, context.json, measured/); docs",
    ),
    Card(
        name="b200",
        marked_bytes=180 * GIB,
        capability=(10, 0),
        multiprocessors=148,
        usable_bytes=int(178.35 * GIB),
        source="what PyTorch shows (unslothai/unsloth 3411); docs",
    ),
    Card(
        name="rtx-5090",
        marked_bytes=32 * GIB,
        capability=(12, 0),
        multiprocessors=170,
        usable_bytes=int(31.36 * GIB),
        source="oom (TrajectoryCrafter 20 gives 31.36, Wan-Video/Wan2.1 465 31.37); docs",
    ),
    Card(
        name="rtx-5060-ti-16gb",
        marked_bytes=16 * GIB,
        capability=(12, 0),
        multiprocessors=36,
        usable_bytes=15_816 * MIB,
        source="what CUDA shows (Luce-Org/lucebox 407); docs",
    ),
    Card(
        name="rtx-2080-ti",
        marked_bytes=11 * GIB,
        capability=(7, 5),
        multiprocessors=68,
        usable_bytes=int(10.76 * GIB),
        source="oom (JDAI-CV/image-captioning 11, ispc-lab/TMA 5); docs",
    ),
    Card(
        name="rtx-a6000",
        marked_bytes=48 * GIB,
        capability=(8, 6),
        multiprocessors=84,
        usable_bytes=int(47.54 * GIB),
        source="oom (google-research/semivl 18, artidoro/qlora 17); docs",
    ),
    Card(
        name="rtx-a5000",
        marked_bytes=24 * GIB,
        capability=(8, 6),
        multiprocessors=64,
        usable_bytes=int(23.67 * GIB),
        source="oom (Magicboomliu/Accelerator-Simple-Template 7); docs",
    ),
    Card(
        name="rtx-a4000",
        marked_bytes=16 * GIB,
        capability=(8, 6),
        multiprocessors=48,
        usable_bytes=int(15.61 * GIB),
        source="oom (DengKaiCQ/VGGT-Long 6; Zeqiang-Lai/Mini-DALLE3 9 gives 15.73); docs",
    ),
    Card(
        name="quadro-rtx-8000",
        marked_bytes=48 * GIB,
        capability=(7, 5),
        multiprocessors=72,
        usable_bytes=int(47.46 * GIB),
        source="oom (Victarry/stable-dreambooth 8); docs",
    ),
    Card(
        name="rtx-6000-ada",
        marked_bytes=48 * GIB,
        capability=(8, 9),
        multiprocessors=142,
        usable_bytes=int(44.43 * GIB),
        source="oom, with error correction on (DINGYANB/MTVCrafter 21); docs",
    ),
    Card(
        name="rtx-pro-6000-blackwell",
        marked_bytes=96 * GIB,
        capability=(12, 0),
        multiprocessors=188,
        usable_bytes=int(94.97 * GIB),
        source="what CUDA shows (antirez/ds4 431); docs",
    ),
    Card(
        name="l40s",
        marked_bytes=48 * GIB,
        capability=(8, 9),
        multiprocessors=142,
        usable_bytes=int(44.42 * GIB),
        source="oom (stepfun-ai/Step-Video-T2V 8; Wan-Video/Wan2.1 205 gives 44.53); docs",
    ),
    Card(
        name="l4",
        marked_bytes=24 * GIB,
        capability=(8, 9),
        multiprocessors=58,
        usable_bytes=int(22.05 * GIB),
        context_bytes=226 * MIB,
        outside_bytes=(255 * MIB, 439 * MIB),
        source="oom (vllm-project/vllm 20214); bare context and ends of jobs as published for 24 GB cards; docs",
    ),
    Card(
        name="a10",
        marked_bytes=24 * GIB,
        capability=(8, 6),
        multiprocessors=72,
        usable_bytes=int(22.18 * GIB),
        source="oom (OpenBMB/MiniCPM-V 640; vllm-project/vllm 9578 gives 22.19); docs",
    ),
    Card(
        name="a10g",
        marked_bytes=24 * GIB,
        capability=(8, 6),
        multiprocessors=80,
        usable_bytes=int(21.99 * GIB),
        source="oom (mistralai/mistral-finetune 69); docs",
    ),
    Card(
        name="a30",
        marked_bytes=24 * GIB,
        capability=(8, 0),
        multiprocessors=56,
        usable_bytes=int(23.53 * GIB),
        source="oom (google/RB-Modulation 5); docs",
    ),
    Card(
        name="t4",
        marked_bytes=16 * GIB,
        capability=(7, 5),
        multiprocessors=40,
        usable_bytes=int(14.56 * GIB),
        source="oom (Zheng-Chong/CatVTON 133, AlphaGPU/leetgpu-challenges 52); docs",
    ),
    Card(
        name="v100-16gb",
        marked_bytes=16 * GIB,
        capability=(7, 0),
        multiprocessors=80,
        usable_bytes=int(15.78 * GIB),
        source="oom (kchengiva/Shift-GCN 34); docs",
    ),
    Card(
        name="v100-32gb",
        marked_bytes=32 * GIB,
        capability=(7, 0),
        multiprocessors=80,
        usable_bytes=int(31.74 * GIB),
        source="oom (liucongg/ChatGLM-Finetuning 73; google/dynibar 8 gives 31.75); docs",
    ),
    Card(
        name="rtx-3090-ti",
        marked_bytes=24 * GIB,
        capability=(8, 6),
        multiprocessors=84,
        usable_bytes=24_114 * MIB,
        source="what PyTorch shows (total_memory=24114MB; Unsloth's line gives 23.651 GB); docs",
    ),
    Card(
        name="rtx-4080",
        marked_bytes=16 * GIB,
        capability=(8, 9),
        multiprocessors=76,
        usable_bytes=16_049 * MIB,
        source="what PyTorch shows (total_memory=16049MB); docs",
    ),
    Card(
        name="rtx-5080",
        marked_bytes=16 * GIB,
        capability=(12, 0),
        multiprocessors=84,
        usable_bytes=int(15.47 * GIB),
        source="what PyTorch shows (RTX 5080 (15.47 GiB VRAM, sm_120); under Windows and WSL 15.92); docs",
    ),
    Card(
        name="rtx-5070-ti",
        marked_bytes=16 * GIB,
        capability=(12, 0),
        multiprocessors=70,
        usable_bytes=15_833 * MIB,
        source="what PyTorch shows (Ultralytics: NVIDIA GeForce RTX 5070 Ti, 15833 MiB; llama.cpp gives 15,808 to 15,880); docs",
    ),
    Card(
        name="rtx-4000-ada",
        marked_bytes=20 * GIB,
        capability=(8, 9),
        multiprocessors=48,
        usable_bytes=int(19.54 * GIB),
        source="what PyTorch shows (RTX 4000 Ada Generation (19.54 GB VRAM)); docs",
    ),
    Card(
        name="titan-rtx",
        marked_bytes=24 * GIB,
        capability=(7, 5),
        multiprocessors=72,
        usable_bytes=int(23.62 * GIB),
        source="what TensorFlow shows (name: TITAN RTX, totalMemory: 23.62GiB); docs",
    ),
    Card(
        name="a40",
        marked_bytes=48 * GIB,
        capability=(8, 6),
        multiprocessors=84,
        usable_bytes=45_416 * MIB,
        source="what PyTorch shows (total_memory=45416MB; Unsloth's line gives 44.549 GB); docs",
    ),
    Card(
        name="l40",
        marked_bytes=48 * GIB,
        capability=(8, 9),
        multiprocessors=142,
        usable_bytes=int(44.40 * GIB),
        source="what PyTorch shows (NVIDIA L40 (44.40 GB VRAM); others give 44.3); docs",
    ),
    Card(
        name="a800-80gb",
        marked_bytes=80 * GIB,
        capability=(8, 0),
        multiprocessors=108,
        usable_bytes=int(79.32 * GIB),
        source="oom (Tencent-Hunyuan/HunyuanImage-3.0 22; hahnyuan/PB-LLM 3 gives 79.33); docs",
    ),
    Card(
        name="h20",
        marked_bytes=96 * GIB,
        capability=(9, 0),
        multiprocessors=78,
        usable_bytes=97_285 * MIB,
        source="what PyTorch shows (total_memory=97285MB); docs",
    ),
    Card(
        name="h100-nvl",
        marked_bytes=94 * GIB,
        capability=(9, 0),
        multiprocessors=132,
        usable_bytes=int(93.00 * GIB),
        source="oom (ali-vilab/VACE 56; Unsloth's line gives 93.016 GB); docs",
    ),
    Card(
        name="gh200-480gb",
        marked_bytes=96 * GIB,
        capability=(9, 0),
        multiprocessors=132,
        usable_bytes=int(94.50 * GIB),
        source="what PyTorch shows (NVIDIA GH200 480GB (94.5 GiB)), with 96 GB at the GPU: the 480 GB are the CPU's; docs",
    ),
    Card(
        name="gb10",
        marked_bytes=128 * GIB,
        capability=(12, 1),
        multiprocessors=48,
        source="docs; its memory is the system's too: of the 119.70 to 121.69 GiB that CUDA shows, what else runs has its part",
    ),
    *(
        Card(name=name, marked_bytes=gib * GIB, capability=cc, multiprocessors=sm, source="docs; none found for Linux")
        for name, gib, cc, sm in (
            ("rtx-3080-ti", 12, (8, 6), 80),
            ("rtx-4080-super", 16, (8, 9), 80),
            ("rtx-4070-ti-super", 16, (8, 9), 66),
            ("rtx-5000-ada", 32, (8, 9), 100),
            ("h800", 80, (9, 0), 132),
        )
    ),
)
CARDS: Mapping[str, Card] = {card.name: card for card in _CARDS}
CAPACITIES: Mapping[str, int] = {card.name: card.usable_bytes for card in _CARDS if card.usable_bytes is not None}
"""Usable bytes of the cards whose capacity is known: those that a budget can name."""
