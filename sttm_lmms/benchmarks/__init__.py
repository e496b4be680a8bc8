"""The six benchmarks: annotation formats, prompts, answer parsing, scores, converters, presets."""

from sttm_lmms.benchmarks.annotations import load_questions
from sttm_lmms.benchmarks.answers import parse_answer
from sttm_lmms.benchmarks.data import annotation_file, data_root, find_video, load_benchmark, video_folder
from sttm_lmms.benchmarks.formats import FORMATS, Format, get_format
from sttm_lmms.benchmarks.prompt import build_prompt
from sttm_lmms.benchmarks.question import Question

__all__ = [
    "FORMATS",
    "Format",
    "Question",
    "annotation_file",
    "build_prompt",
    "data_root",
    "find_video",
    "get_format",
    "load_benchmark",
    "load_questions",
    "parse_answer",
    "video_folder",
]
