"""Questions as lmms-eval sees them: documents, requests and scored answers.

Nothing here imports lmms-eval; the files in ``tasks/`` name these functions in their YAML.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sttm_lmms.benchmarks import scores
from sttm_lmms.benchmarks.annotations import load_questions
from sttm_lmms.benchmarks.data import annotation_file, data_root, find_video, video_folder
from sttm_lmms.benchmarks.formats import get_format
from sttm_lmms.benchmarks.prompt import build_prompt
from sttm_lmms.benchmarks.question import Question
from sttm_lmms.benchmarks.submission import write_submission
from sttm_lmms.config import check_choice

Document = dict[str, Any]
CATEGORIES = ("duration", "task_type", "domain", "sub_category")


@dataclass(frozen=True, repr=False)
class TaskData:
    """The documents of one task and what its YAML needs to load them.

    lmms-eval reads the annotation file itself (``dataset_kwargs``) and then hands the data set to
    ``process_docs``, which replaces it by the checked and ordered documents.
    """

    annotations: Path
    docs: tuple[Document, ...]

    @classmethod
    def load(cls, benchmark: str, root: Path | None = None) -> TaskData:
        """Read and check a benchmark; the documents are in the order of the file.

        Args:
            benchmark: a name of ``FORMATS``.
            root: the data root, ``$STTM_DATA_ROOT`` by default.

        Raises:
            AnnotationError: the annotation file is missing or malformed.
        """
        root = data_root() if root is None else root
        path = annotation_file(root, get_format(benchmark))
        found = documents(load_questions(path, benchmark), benchmark, video_folder(root, benchmark))
        return cls(path, tuple(found))

    def __repr__(self) -> str:
        """Short, and other for other questions: lmms-eval writes it to result files and keys cached
        answers by it."""
        asked = [{name: value for name, value in doc.items() if name != "video_second"} for doc in self.docs]
        content = json.dumps([{**doc, "video": ""} for doc in asked], sort_keys=True).encode()
        digest = hashlib.sha256(content).hexdigest()[:12]
        return f"TaskData({self.annotations.name}, {len(self.docs)} questions, {digest})"

    @property
    def dataset_kwargs(self) -> dict[str, Any]:
        """For ``dataset_path: json``; the path is relative where it can be, because result files
        hold it."""
        path, here = self.annotations, Path.cwd()
        return {"data_files": {"test": str(path.relative_to(here) if path.is_relative_to(here) else path)}}

    @property
    def metric_list(self) -> list[dict[str, Any]]:
        """The metrics that occur in these documents, each with its aggregation."""
        names = {name: None for doc in self.docs for name in process_results(doc, [""])}
        return [{"metric": name, "aggregation": aggregation(name), "higher_is_better": True} for name in names]

    def process_docs(self, dataset: Any) -> Any:
        """The documents as a data set of the same class as ``dataset``."""
        return dataset.from_list(list(self.docs))


def documents(questions: Sequence[Question], benchmark: str, videos: Path) -> list[Document]:
    """One flat dict a question.

    ``tries`` is the number of questions of its video, ``video_second`` its length or 0, by which
    processes share the work, ``submit`` says that the benchmark keeps answers secret; an unknown
    answer and categories the benchmark does not have are "".
    """
    submit = any(question.answer is None for question in questions)
    tries = Counter(question.video_id for question in questions)
    paths = {video_id: str(find_video(videos, video_id)) for video_id in tries}
    return [
        {
            "benchmark": benchmark,
            "video_id": question.video_id,
            "question_id": question.question_id,
            "question": question.question,
            "options": list(question.options),
            "answer": question.answer or "",
            "video": paths[question.video_id],
            "tries": tries[question.video_id],
            "video_second": question.seconds,
            "submit": submit,
            **{name: question.categories.get(name, "") for name in CATEGORIES},
        }
        for question in questions
    ]


def doc_to_text(doc: Document, lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """The prompt of the published runs, without the video.

    Args:
        lmms_eval_specific_kwargs: of the task's YAML; ``prompt: mended`` names the letters of the
            options and no others where the published prompt names more. ``prompt: published`` is
            the default.

    Raises:
        ValueError: another ``prompt``.
    """
    variant = (lmms_eval_specific_kwargs or {}).get("prompt", "published")
    check_choice("prompt", variant, ("published", "mended"))
    beyond = get_format(doc["benchmark"]).letters_beyond if variant == "published" else 0
    return build_prompt(doc["question"], doc["options"], letters_beyond=beyond)


def doc_to_visual(doc: Document, lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> list[str]:
    """The path of the video. Whether the file is there is for the model to find out, which can go
    on without it."""
    return [doc["video"]]


def doc_to_messages(doc: Document, lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """One user turn: the video, then the prompt."""
    content = [
        {"type": "video", "url": doc["video"]},
        {"type": "text", "text": doc_to_text(doc, lmms_eval_specific_kwargs)},
    ]
    return [{"role": "user", "content": content}]


def process_results(doc: Document, results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The scored answer under the name of every metric it counts for; ``results`` holds the
    reply."""
    letters = "".join(option[0] for option in doc["options"])
    prediction, score = scores.score_reply(results[0] if results else "", letters, doc["answer"])
    categories = {name: doc[name] for name in CATEGORIES if doc[name]}
    ids = {"video_id": doc["video_id"], "question_id": doc["question_id"]}
    metrics: dict[str, dict[str, Any]] = {}
    if doc["answer"]:
        item = {"score": score, "prediction": prediction, "answer": doc["answer"], **ids, **categories}
        metrics = {"accuracy": item} | {f"{name}/{value}": item for name, value in categories.items()}
    # What follows is no mean over questions; without "score", lmms-eval does not compute the
    # standard error of one.
    if doc["benchmark"] == "vnbench":
        kind = scores.vnbench_kind(doc["task_type"])
        item = {"correct": score, "tries": doc["tries"], "kind": kind, **ids}
        metrics |= {"circular": item, f"circular/{kind}": item}
    elif doc["benchmark"] == "mlvu":
        metrics["task_mean"] = {"correct": score, "task_type": doc["task_type"], **ids}
    if doc["submit"]:
        metrics["submission"] = {"prediction": prediction, **ids}
    return metrics


def aggregation(metric: str) -> Callable[..., float | str | None]:
    """The function that turns the scored answers of a metric into one number (``submission``: the
    path of a file)."""
    if metric.startswith("circular/"):
        return scores.circular_kind
    if metric == "submission":
        return write_submission
    return {"circular": scores.circular, "task_mean": scores.task_mean}.get(metric, scores.accuracy)
