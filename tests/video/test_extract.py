from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from video_clips import moving

from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.families import get_family
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video import VideoInfo, VideoSettings, probe, write_video
from sttm_lmms.video.extract import estimate_size, extract, shard_of
from sttm_lmms.video.features import FeatureKey, FeatureStore, OtherKeyError

KEY = FeatureKey("weights", "processor", max_frames=8, fps=1.0, dtype="float32")
ITEMS = [(f"clip{i}", f"clip{i}.mp4") for i in range(7)]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path, "model", KEY, frame_shape=(9, 4))


class Encoder:
    """Counts what it encodes; the features say which video they are of."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.seen: list[str] = []
        self.broken = broken

    def __call__(self, path: str | Path) -> VisionFeatures:
        self.seen.append(str(path))
        if path in self.broken:
            raise VideoError(path, "truncated", "copy it again")
        number = float(str(path)[4])
        return VisionFeatures(torch.full((2, 9, 4), number), "video", {"num_frames": 2})


def test_what_is_there_is_skipped(store: FeatureStore) -> None:
    first = extract(ITEMS[:3], Encoder(), store)
    assert (first.written, first.skipped, first.failed) == (["clip0", "clip1", "clip2"], [], [])
    encoder, calls = Encoder(), []
    second = extract(ITEMS, encoder, store, progress=lambda done, total: calls.append((done, total)))
    assert second.skipped == first.written
    assert second.written == ["clip3", "clip4", "clip5", "clip6"]
    assert encoder.seen == [f"clip{i}.mp4" for i in range(3, 7)]
    assert calls == [(i, 7) for i in range(1, 8)]
    assert all(store.load(vid).tensor.eq(float(vid[4:])).all() for vid, _ in ITEMS)


def test_another_video_of_the_same_name_is_encoded_and_a_copy_is_not(store: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    written = []
    for content, changed in ((b"one", 1), (b"one", 1), (b"one", 2), (b"two", 3), (b"three", 3), (b"three", 4)):
        path.write_bytes(content)
        os.utime(path, (changed, changed))
        report = extract([("clip", path)], lambda _: VisionFeatures(torch.ones(2, 9, 4)), store)
        written.append(len(report.written))
    assert written == [1, 0, 0, 1, 1, 0]


def test_a_broken_file_is_written_again(store: FeatureStore) -> None:
    extract(ITEMS, Encoder(), store)
    store.path("clip4").write_bytes(b"half")
    assert extract(ITEMS, Encoder(), store).written == ["clip4"]


def test_a_video_that_fails_does_not_stop_the_others(store: FeatureStore) -> None:
    items = [*ITEMS, ("../escape", "clip0.mp4")]
    report = extract(items, Encoder(broken=("clip2.mp4",)), store)
    assert len(report.written) == 6
    assert [vid for vid, _ in report.failed] == ["clip2", "../escape"]
    assert report.failed[0][1] == "clip2.mp4: truncated; copy it again"
    with pytest.raises(VideoError, match="truncated"):
        extract(items, Encoder(broken=("clip2.mp4",)), store, on_error="raise")
    with pytest.raises(FeatureError, match="would leave its folder"):
        extract(items, Encoder(), store, on_error="raise")
    with pytest.raises(ValueError, match="on_error='ignore'"):
        extract(items, Encoder(), store, on_error="ignore")


def test_features_of_another_checkpoint_are_not_written_over(store: FeatureStore, tmp_path: Path) -> None:
    extract(ITEMS, Encoder(), store)
    other = FeatureStore(tmp_path, "model", FeatureKey("other", "processor", 8, 1.0, "float32"))
    encoder = Encoder()
    with pytest.raises(OtherKeyError, match="checkpoint='weights'"):
        extract(ITEMS, encoder, other)
    assert not encoder.seen


@pytest.mark.parametrize("world", [1, 2, 3, 10])
def test_shards_share_the_work(store: FeatureStore, world: int) -> None:
    questions = [item for item in ITEMS for _ in range(3)]  # several questions on each video
    shards = [shard_of(questions, rank, world) for rank in range(world)]
    assert sorted(item for shard in shards for item in shard) == ITEMS
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    encoder = Encoder()
    for rank in range(world):
        extract(questions, encoder, store, shard=(rank, world))
    assert sorted(encoder.seen) == [path for _, path in ITEMS]


@pytest.mark.parametrize("shard", [(-1, 2), (2, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(store: FeatureStore, shard: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        extract(ITEMS, Encoder(), store, shard=shard)


PROGRAM = """
    import sys
    from pathlib import Path
    import torch
    from sttm_lmms.types import VisionFeatures
    from sttm_lmms.video.extract import extract
    from sttm_lmms.video.features import FeatureKey, FeatureStore

    def encode(path):
        with open(sys.argv[2], "a") as log:
            print(path, file=log)
        tensor = torch.full((8, 729, 512), float(path))
        return VisionFeatures(tensor, "video", {"num_frames": 8})

    store = FeatureStore(sys.argv[1], "model", FeatureKey("weights", "processor", 8, 1.0, "float32"))
    extract([(f"clip{i}", str(i)) for i in range(40)], encode, store)
"""


@pytest.mark.slow
def test_kill_and_start_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), str(log)]
    store = FeatureStore(tmp_path, "model", KEY)
    features, whole_before = store.folder / "features", 0
    for kill in range(2):
        process = subprocess.Popen(command)
        while len(list(features.glob("*.safetensors"))) < whole_before + 4:
            assert process.poll() is None, "it was over before it could be killed"
            time.sleep(0.002)
        time.sleep(0.004 * kill)  # another point of the save each time
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = [f"clip{i}" for i in range(40) if store.path(f"clip{i}").exists()]
        assert whole_before < len(whole) < 40
        assert all(store.load(vid).tensor.eq(float(vid[4:])).all() for vid in whole)
        whole_before = len(whole)
    subprocess.run(command, check=True)
    assert all(store.load(f"clip{i}").tensor.eq(float(i)).all() for i in range(40))
    encoded = log.read_text().split()
    assert set(encoded) == {str(i) for i in range(40)}
    assert len(encoded) <= 40 + 2, "only the video that each kill interrupted is encoded twice"
    store.remove_leftovers(older_than=-1)
    assert len(list(features.iterdir())) == 40


def _config(**values: int) -> SimpleNamespace:
    return SimpleNamespace(**values)


def test_the_size_is_known_before(tmp_path: Path, store: FeatureStore) -> None:
    write_video(tmp_path / "a.mp4", moving(60), 10)  # 6 s: frames 0, 10, ..., 50 and 59
    write_video(tmp_path / "b.mp4", moving(5), 10)  # frames 0 and 4
    items = [("a", tmp_path / "a.mp4"), ("b", tmp_path / "b.mp4"), ("a", tmp_path / "a.mp4"), ("c", tmp_path / "c.mp4")]
    config = SimpleNamespace(vision_config=_config(image_size=384, patch_size=14, hidden_size=1152))
    settings = VideoSettings(max_frames=8, fps=1)

    def shape_of(info: VideoInfo) -> tuple[int, ...]:
        return get_family("llava_video").feature_shape(config, info, settings)

    size = (7 + 2) * 729 * 1152 * 4
    assert estimate_size(items, shape_of, "float32") == (2, size)
    assert estimate_size(items, shape_of, "float32", "bf16") == (2, size // 2)
    assert estimate_size(items, shape_of, "bfloat16", "pooled") == (2, 9 * 196 * 1152 * 2)


def test_the_size_of_qwen2_vl(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(60, 280, 560), 10)
    config = SimpleNamespace(text_config=_config(hidden_size=64))
    settings = VideoSettings(max_frames=16, fps=2)
    t, h, w, c = get_family("qwen2_vl").feature_shape(config, probe(path), settings)
    assert (t, c) == (6, 64)
    assert 1.6 < w / h < 2.5
    with pytest.raises(ValueError, match="form='pooled' needs square frames"):
        estimate_size([("a", path)], lambda info: (t, h, w, c), "bfloat16", "pooled")


def test_the_estimate_is_what_is_written(tmp_path: Path, store: FeatureStore) -> None:
    path = write_video(tmp_path / "clip1.mp4", moving(20), 10)
    store.save("clip1", VisionFeatures(torch.ones(3, 9, 4), "video", {"num_frames": 3}))
    _, estimate = estimate_size([("clip1", path)], lambda info: (3, 9, 4), "float32")
    assert estimate <= store.path("clip1").stat().st_size <= estimate + 1024
