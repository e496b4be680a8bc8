"""Reading and sampling frames, and stored visual features."""

from __future__ import annotations

from sttm_lmms.video.pictures import is_animated, video_of_frames
from sttm_lmms.video.reading import available_backends, probe, read_frames
from sttm_lmms.video.sampling import frames_at, sample_uniform_fps, spread_in_time
from sttm_lmms.video.settings import VIDEO_BACKENDS, Video, VideoInfo, VideoSettings
from sttm_lmms.video.writing import write_video

__all__ = [
    "VIDEO_BACKENDS",
    "Video",
    "VideoInfo",
    "VideoSettings",
    "available_backends",
    "frames_at",
    "is_animated",
    "probe",
    "read_frames",
    "sample_uniform_fps",
    "spread_in_time",
    "video_of_frames",
    "write_video",
]
