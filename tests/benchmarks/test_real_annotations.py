"""The published annotation files, where a copy lies beside the repository."""

import re
from collections import Counter
from pathlib import Path

import pytest

from sttm_lmms.benchmarks import FORMATS, build_prompt, load_benchmark
from sttm_lmms.benchmarks.data import video_folder
from sttm_lmms.benchmarks.documents import documents, process_results

REAL = Path(__file__).parents[3] / "shared" / "annotations"
SIZES = {  # questions, videos, most options
    "vnbench": (5400, 1350, 4),
    "videomme": (2700, 900, 4),
    "longvideobench": (1337, 753, 5),
    "mlvu": (2174, 1242, 4),
    "nextqa": (8564, 1000, 5),
}
PROMPT = re.compile(
    r"Select the best answer to the following multiple-choice question based on the video and the subtitles\. "
    r"Respond with only the letter \(A, B(, C)?(, D)?(, E)?(, F)?, or [C-F]\) of the correct option\.\n"
    r".+\nA\. .*\nB\. .*\nC\. .*\nThe best answer is:",
    re.DOTALL,
)


@pytest.fixture(params=SIZES)
def real(request):
    if not (REAL / request.param).is_dir():
        pytest.skip(f"no published annotation file of {request.param} at ../shared/annotations")
    return request.param, load_benchmark(request.param, REAL)


def test_counts(real):
    benchmark, questions = real
    count, videos, most = SIZES[benchmark]
    assert len(questions) == len({q.question_id for q in questions}) == count
    assert len({q.video_id for q in questions}) == videos
    assert max(len(q.options) for q in questions) == most
    assert all(q.answer in q.letters for q in questions)


def test_prompts_are_well_formed(real):
    _, questions = real
    for q in questions:
        prompt = build_prompt(q.question, q.options)
        assert PROMPT.fullmatch(prompt), prompt
        assert f"or {q.letters[-1]})" in prompt


def test_vnbench_categories_by_file_name(real):
    benchmark, questions = real
    if benchmark == "vnbench":
        assert set(Counter(q.categories["task_type"] for q in questions).values()) == {600}
        assert all(q.video_id.endswith(q.categories["task_type"]) for q in questions)


def test_every_right_answer_scores(real):
    benchmark, questions = real
    for doc in documents(questions, benchmark, video_folder(REAL, benchmark)):
        for reply in (doc["answer"], f"The best answer is: {doc['answer']}.", f"Best answer: {doc['answer']}"):
            assert process_results(doc, [reply])["accuracy"]["score"] == 1.0
        line = doc["options"]["ABCDE".index(doc["answer"])]
        assert process_results(doc, [line])["accuracy"]["score"] == 1.0, line
        assert process_results(doc, [""])["accuracy"]["score"] == 0.0


def test_names_are_formats():
    assert set(SIZES) == set(FORMATS) - {"egoschema"}
