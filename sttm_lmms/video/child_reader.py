"""Decoding with decord or torchcodec, in a process of its own that can be ended whatever it does.

Neither is quicker than PyAV (``docs/usage.md``), and decord loops forever on some files: only users
who name them get them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sttm_lmms.errors import VideoError
from sttm_lmms.video.deadline import Deadline
from sttm_lmms.video.index import FrameIndex
from sttm_lmms.video.pyav_reader import read_pyav

_CONTAINERS = {"mp4", "matroska"}
_CHUNK = 16


def is_available(name: str) -> bool:
    """Whether the package of a backend is installed."""
    return find_spec(name) is not None


def read_in_child(
    name: str, path: str | Path, index: FrameIndex, numbers: Sequence[int], deadline: Deadline
) -> Iterator[tuple[np.ndarray, bool]]:
    """As :func:`~sttm_lmms.video.pyav_reader.read_pyav`, by ``"decord"`` or ``"torchcodec"``.

    Raises:
        VideoError: the backend cannot read the file, is known to give other frames than those asked
            for, counts them differently, gives another picture for the first of them than PyAV, or
            is too slow.
    """
    hint = "read it with video_backend='pyav'"
    if unfit := _unfit(index):
        raise VideoError(path, f"{name} does not find frames reliably in {unfit}", hint)
    first, _ = next(read_pyav(path, index, numbers[:1], deadline))
    for row, image in enumerate(_images(name, path, len(index.pts), numbers, deadline)):
        if row == 0 and not np.array_equal(image, first):
            raise VideoError(path, f"{name} gives another picture for frame {numbers[0]} than PyAV", hint)
        yield image, True


def _unfit(index: FrameIndex) -> str | None:
    if not _CONTAINERS & set(index.container.split(",")):
        return f"{index.container} files"
    if index.open_gop:
        return "files with open GOPs"
    if index.hidden:
        return "files with hidden frames"
    if not index.only_stream:
        return "files with several video streams"
    return f"this file: {index.counted}" if index.counted else None


def _images(
    name: str, path: str | Path, total: int, numbers: Sequence[int], deadline: Deadline
) -> Iterator[np.ndarray]:
    job = {"name": name, "path": str(path), "total": total, "numbers": list(numbers)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the libraries below write a line for every packet that they dislike
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(threading.TIMEOUT_MAX if deadline.left is None else deadline.left, process.kill)
    timer.daemon = True
    timer.start()
    done = 0
    try:
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
        while line := process.stdout.readline():
            message = json.loads(line)
            if "error" in message:
                raise VideoError(path, f"{name} {message['error']}", "read it with video_backend='pyav'")
            data = process.stdout.read(int(np.prod(message["shape"])))
            if len(data) < np.prod(message["shape"]):
                break
            done += message["shape"][0]
            yield from np.frombuffer(bytearray(data), np.uint8).reshape(message["shape"])
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
    if done < len(numbers):
        deadline.check(path)
        raise VideoError(path, f"{name} crashed", "read it with video_backend='pyav'")


def _decord(job: dict) -> Iterator[np.ndarray]:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(job["path"], ctx=decord.cpu(0))
    _check_count(len(reader), job["total"])
    for start in range(0, len(job["numbers"]), _CHUNK):
        yield reader.get_batch(job["numbers"][start : start + _CHUNK]).asnumpy()


def _torchcodec(job: dict) -> Iterator[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(job["path"], dimension_order="NHWC", seek_mode="exact")
    _check_count(len(decoder), job["total"])
    for start in range(0, len(job["numbers"]), _CHUNK):
        yield decoder.get_frames_at(job["numbers"][start : start + _CHUNK]).data.numpy()


_BATCHES: dict[str, Callable[[dict], Iterator[np.ndarray]]] = {"decord": _decord, "torchcodec": _torchcodec}


def _check_count(found: int, total: int) -> None:
    if found != total:
        raise RuntimeError(f"counts {found} frames where {total} are shown")


def main() -> None:
    """The child: a job from stdin, then lines of json with the bytes of each batch behind them."""
    pipe: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the frames
    job = json.load(sys.stdin)
    try:
        for batch in _BATCHES[job["name"]](job):
            pipe.write(json.dumps({"shape": batch.shape}).encode() + b"\n")
            pipe.write(np.ascontiguousarray(batch).data)
    except Exception as error:  # whatever it is, the parent names the file and the way out
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if not reason.startswith("counts"):
            reason = f"cannot read it ({reason})"
        pipe.write(json.dumps({"error": reason}).encode() + b"\n")
    pipe.flush()


if __name__ == "__main__":
    main()
