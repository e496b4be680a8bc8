"""The STTM annotation format of the six benchmarks: where the files lie and what their records
hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sttm_lmms.errors import unknown

AnswerKind = Literal["letter", "index"]


@dataclass(frozen=True)
class Format:
    """What distinguishes the annotation file of one benchmark.

    Attributes:
        name: of the benchmark, and of its folder under the data root.
        files: names of the annotation file, the preferred one first.
        video_key, question_key: the fields that hold the ids.
        categories: fields by which results are broken down.
        options: ``"lettered"`` (a list of ``"A. text"``), ``"plain"`` (a list of ``"text"``) or
            ``"fields"`` (``option 0``, ``option 1``, ...).
        answer: a letter or a 0-based index.
        answer_required: False where the benchmark keeps some answers secret.
        letters_beyond: letters that the published prompt offers beyond the last option.
    """

    name: str
    files: tuple[str, ...]
    video_key: str
    question_key: str
    categories: tuple[str, ...]
    options: Literal["lettered", "plain", "fields"] = "plain"
    answer: AnswerKind = "letter"
    answer_required: bool = True
    letters_beyond: int = 0


FORMATS = {
    f.name: f
    for f in (
        Format(
            name="vnbench",
            files=("VNBench-main-4try_v2.json",),
            video_key="videoID",
            question_key="question_id",
            categories=("duration", "task_type"),
            options="lettered",
        ),
        Format(
            name="videomme",
            files=("videomme.json",),
            video_key="videoID",
            question_key="question_id",
            categories=("duration", "task_type", "domain", "sub_category"),
            options="lettered",
        ),
        Format(
            name="longvideobench",
            files=("lvb_val_v2.json",),
            video_key="videoID",
            question_key="question_id",
            categories=("duration", "task_type"),
            answer="index",
            letters_beyond=1,
        ),
        Format(
            name="mlvu",
            files=("MLVU_mcq_v2.json",),
            video_key="video_id",
            question_key="question_id",
            categories=("duration", "task_type"),
        ),
        Format(
            name="egoschema",
            files=("egoschema_fullset_v2.json", "questions.json"),
            video_key="q_uid",
            question_key="q_uid",
            categories=(),
            options="fields",
            answer="index",
            answer_required=False,
        ),
        Format(
            name="nextqa",
            files=("MC_test_v2.json",),
            video_key="video_id",
            question_key="question_id",
            categories=("duration", "task_type"),
        ),
    )
}

_VNBENCH_KIND = re.compile(r"_((?:ret|ord|cnt)_(?:edit|insert)\d)$")


def get_format(benchmark: str) -> Format:
    """The format called ``benchmark``; an unknown name raises ``ValueError`` listing those which
    exist."""
    if benchmark not in FORMATS:
        raise unknown("benchmark", benchmark, FORMATS)
    return FORMATS[benchmark]


def vnbench_task_type(video_id: str, annotated: str) -> str:
    """The task type that the file name of a VNBench video ends in, else the annotated one.

    In the published file ``task_type`` and file name disagree for all 1,200 rows of ``ret_insert1``
    and ``ret_insert2``; the file name is right.
    """
    named = _VNBENCH_KIND.search(video_id)
    return named.group(1) if named else annotated


def duration_class(seconds: float) -> str:
    """``"short"`` below one minute, ``"medium"`` below two, else ``"long"``: how the authors broke
    benchmarks down that have no classes of their own."""
    return "short" if seconds < 60 else "medium" if seconds < 120 else "long"
