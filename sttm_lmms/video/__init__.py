"""Reading and sampling frames, and stored visual features."""

from __future__ import annotations

from sttm_lmms.video.settings import VIDEO_BACKENDS, Video, VideoInfo, VideoSettings
from sttm_lmms.video.writing import write_video

__all__ = ["VIDEO_BACKENDS", "Video", "VideoInfo", "VideoSettings", "write_video"]
