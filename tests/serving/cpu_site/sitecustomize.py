"""For the CPU build of vLLM: torch 2.13.0+cpu has no matching torchvision, whose import looks for
two operators."""

import torch

for signature in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    torch.library.define(f"torchvision::{signature.split('(')[0]}", signature[signature.index("(") :])
