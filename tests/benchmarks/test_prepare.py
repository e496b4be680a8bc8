"""Official releases, in small: converter -> data folder -> task documents -> score."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sttm_lmms.benchmarks import FORMATS, load_benchmark
from sttm_lmms.benchmarks.data import annotation_file, get_format, video_folder
from sttm_lmms.benchmarks.documents import documents, process_results
from sttm_lmms.benchmarks.formats import duration_class
from sttm_lmms.benchmarks.prepare import check, prepare
from sttm_lmms.benchmarks.prepare.cli import app
from sttm_lmms.benchmarks.prepare.releases import RELEASES
from sttm_lmms.errors import AnnotationError
from sttm_lmms.video import write_video

TASKS = Path(__file__).parents[2] / "tasks"

VNBENCH = [
    {
        "video": f"VNBench/{name}.mp4",
        "question": "How many stars?",
        "options": ["1", "2", "3", "4"] if attempt == 0 else ["4", "3", "2", "1"],
        "gt": "3",
        "gt_option": "C" if attempt == 0 else "B",
        "needle_time": [3, 7],
        "length": 12.0,
        "type": "cnt_edit1",
        "try": attempt,
    }
    for name in ("clip0_cnt_edit1", "clip1_cnt_edit1")
    for attempt in (0, 1)
]
VIDEOMME = [
    {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Geography",
        "url": "",
        "videoID": name,
        "question_id": f"00{i}-1",
        "task_type": "OCR Problems",
        "question": "What does the sign say?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
        "answer": "B",
    }
    for i, name in enumerate(("clip0", "clip1"))
]
LONGVIDEOBENCH = [
    {
        "id": f"{name}_0",
        "video_id": name,
        "video_path": f"{name}.mp4",
        "question": "Who speaks?",
        "question_wo_referring_query": "",
        "candidates": ["a man", "a woman", "a child"],
        "correct_choice": 2,
        "position": [1, 2],
        "topic_category": "NP",
        "question_category": "S2E",
        "level": "L1-Perception",
        "subtitle_path": f"{name}.json",
        "duration_group": 15,
        "starting_timestamp_for_subtitles": 0,
        "duration": 12.1,
        "view_count": 3,
    }
    for name in ("clip0", "clip1")
]
MLVU = [
    {
        "video": f"{name}.mp4",
        "duration": 12.0,
        "question": question,
        "candidates": ["red", "blue", "green", "red"],
        "answer": answer,
        "question_type": "plotQA",
    }
    for name, question, answer in (("clip0", "Coat?", "red"), ("clip1", "Hat?", "green"), ("clip0", "Car?", "blue"))
]
NEXTQA = [
    {
        "video": name,
        "frame_count": "10",
        "width": "32",
        "height": "32",
        "question": "why does the dog bark",
        "answer": "4",
        "qid": "8",
        "type": "CW",
        **{f"a{i}": text for i, text in enumerate(("run", "sit", "eat", "rain", "noise"))},
    }
    for name in ("clip0", "clip1")
]
EGOSCHEMA = [
    {
        "q_uid": name,
        "google_drive_id": "g",
        "question": "What is done?",
        **{f"option {i}": text for i, text in enumerate(("cook", "sew", "read", "paint", "clean"))},
    }
    for name in ("clip0", "clip1")
]
VIDEOS = {"vnbench": ("clip0_cnt_edit1", "clip1_cnt_edit1"), "mlvu": ("1_plotQA/clip0", "1_plotQA/clip1")}


def write_release(folder, benchmark, change=None):
    """The release in the folder; ``change`` edits its records."""
    records = {
        "vnbench": VNBENCH,
        "videomme": VIDEOMME,
        "longvideobench": LONGVIDEOBENCH,
        "mlvu": MLVU,
        "nextqa": NEXTQA,
        "egoschema": EGOSCHEMA,
    }[benchmark]
    records = [dict(record) for record in records]
    if change is not None:
        change(records)
    folder.mkdir(exist_ok=True)
    if benchmark == "videomme":
        pandas = pytest.importorskip("pandas")
        pandas.DataFrame(records).to_parquet(folder / "test-00000-of-00001.parquet")
    elif benchmark == "nextqa":
        with (folder / "test.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    else:
        names = {
            "vnbench": "VNBench-main-4try",
            "longvideobench": "lvb_val",
            "mlvu": "1_plotQA",
            "egoschema": "questions",
        }
        (folder / f"{names[benchmark]}.json").write_text(json.dumps(records))
    if benchmark == "egoschema":
        (folder / "subset_answers.json").write_text(json.dumps({"clip1": 3}))
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two films, of 6 and of 70 seconds."""
    folder = tmp_path_factory.mktemp("clips")
    for name, seconds in (("short", 6), ("medium", 70)):
        frames = np.zeros((seconds, 32, 32, 3), np.uint8)
        frames[:, :, :16] = np.linspace(0, 255, seconds, dtype=np.uint8)[:, None, None, None]
        write_video(folder / f"{name}.mp4", frames, fps=1)
    return folder


@pytest.fixture
def make_videos(tmp_path, clips):
    def make(benchmark, only=None):
        folder = tmp_path / "release_videos"
        for source, clip in zip(VIDEOS.get(benchmark, ("clip0", "clip1")), ("short", "medium"), strict=True):
            if only in (None, clip):
                path = folder / f"{source}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((clips / f"{clip}.mp4").read_bytes())
        return folder

    return make


def written(out, benchmark):
    return json.loads(annotation_file(out, get_format(benchmark)).read_text())


@pytest.mark.parametrize("benchmark", FORMATS)
def test_round_trip(tmp_path, make_videos, benchmark):
    out = tmp_path / "data"
    report = prepare(benchmark, write_release(tmp_path / "raw", benchmark), make_videos(benchmark), out)
    assert report.complete
    assert report.videos == 2
    questions = load_benchmark(benchmark, out)
    assert len(questions) == report.questions
    docs = documents(questions, benchmark, video_folder(out, benchmark))
    for doc in docs:
        with open(doc["video"], "rb") as file:
            assert file.read(1) == b"\0"
    right = {
        "vnbench": "CBCB",
        "videomme": "BB",
        "longvideobench": "CC",
        "mlvu": "ACB",
        "nextqa": "EE",
        "egoschema": " D",
    }
    scores = [
        process_results(doc, [f"The best answer is: {letter}"])["accuracy"]["score"]
        for doc, letter in zip(docs, right[benchmark], strict=True)
        if doc["answer"]
    ]
    assert set(scores) == {1.0}
    assert check(out, benchmark, read_videos=True).complete


@pytest.mark.parametrize("benchmark", FORMATS)
def test_round_trip_through_the_task(tmp_path, make_videos, monkeypatch, benchmark):
    tasks = pytest.importorskip("lmms_eval.tasks")
    prepare(benchmark, write_release(tmp_path / "raw", benchmark), make_videos(benchmark), tmp_path / "data")
    monkeypatch.setenv("STTM_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    name = f"sttm_{benchmark}"
    manager = tasks.TaskManager(include_path=str(TASKS), include_defaults=False)
    task = tasks.get_task_dict([name], manager, "chat")[name]
    docs = [doc for doc in task.eval_docs if doc["answer"]]
    scores = [task.process_results(doc, [doc["answer"]])["accuracy"] for doc in docs]
    assert task.aggregation()["accuracy"](scores) == 1.0
    assert all(Path(path).is_file() for doc in docs for path in task.doc_to_visual(doc))


def test_vnbench_record(tmp_path, make_videos):
    prepare("vnbench", write_release(tmp_path / "raw", "vnbench"), make_videos("vnbench"), tmp_path / "data")
    records = written(tmp_path / "data", "vnbench")
    assert records[1] == {
        "question": "How many stars?",
        "options": ["A. 4.", "B. 3.", "C. 2.", "D. 1."],
        "needle_time": [3, 7],
        "answer": "B",
        "length": 12.0,
        "task_type": "cnt_edit1",
        "try": 1,
        "videoID": "clip0_cnt_edit1",
        "question_id": "clip0_cnt_edit1_try1",
        "duration": "short",
        "video_second": pytest.approx(6.0, abs=0.5),
    }
    assert records[2]["duration"] == "medium"
    assert records[2]["video_second"] == pytest.approx(70, abs=1)


def test_mlvu_ids_and_letters(tmp_path, make_videos):
    prepare("mlvu", write_release(tmp_path / "raw", "mlvu"), make_videos("mlvu"), tmp_path / "data")
    records = written(tmp_path / "data", "mlvu")
    assert [r["question_id"] for r in records] == ["1_plotQA-clip0-1", "1_plotQA-clip1-1", "1_plotQA-clip0-2"]
    assert [r["answer"] for r in records] == ["A", "C", "B"]  # the first of two equal candidates
    assert (tmp_path / "data/mlvu/videos/1_plotQA-clip0.mp4").exists()


def test_other_records(tmp_path, make_videos):
    for benchmark in ("longvideobench", "nextqa", "egoschema"):
        prepare(benchmark, write_release(tmp_path / benchmark, benchmark), make_videos(benchmark), tmp_path / "data")
    lvb, nextqa, ego = (written(tmp_path / "data", name)[1] for name in ("longvideobench", "nextqa", "egoschema"))
    assert (lvb["videoID"], lvb["duration"], lvb["task_type"], lvb["answer"]) == ("clip1", 15, "S2E", 2)
    assert (nextqa["question_id"], nextqa["answer"], nextqa["duration"]) == ("clip1_8", "E", "medium")
    assert (ego["q_uid"], ego["answer"]) == ("clip1", 3)


def test_accounts_are_no_part_of_the_published_ids(tmp_path, make_videos):
    """LongVideoBench calls some videos "@account-1234" and their questions "@account-1234_0"."""

    def change(records):
        records[1].update(id="@some-one-71416_0", video_id="@some-one-71416", video_path="@some-one-71416.mp4")

    videos = make_videos("longvideobench")
    (videos / "clip1.mp4").rename(videos / "@some-one-71416.mp4")
    raw = write_release(tmp_path / "raw", "longvideobench", change)
    assert prepare("longvideobench", raw, videos, tmp_path / "data").complete
    record = written(tmp_path / "data", "longvideobench")[1]
    assert (record["videoID"], record["question_id"]) == ("71416", "71416_0")


@pytest.mark.parametrize("suffix", [".MOV", ".m4v", ".gif", ".Mp4"])
def test_other_containers(tmp_path, make_videos, suffix):
    videos, out = make_videos("videomme"), tmp_path / "data"
    (videos / "clip1.mp4").rename(videos / f"clip1{suffix}")
    assert prepare("videomme", write_release(tmp_path / "raw", "videomme"), videos, out, copy=True).complete
    assert check(out, "videomme").complete


def test_links_into_a_download_cache(tmp_path, make_videos):
    """The files that these links point to have no ending."""
    videos, out = make_videos("videomme"), tmp_path / "data"
    for name in ("clip0", "clip1"):
        blob = (videos / f"{name}.mp4").rename(tmp_path / f"blob-{name}")
        (videos / f"{name}.mp4").symlink_to(blob)
    assert prepare("videomme", write_release(tmp_path / "raw", "videomme"), videos, out).complete
    assert (out / "videomme/videos/clip0.mp4").is_file()


@pytest.mark.parametrize("benchmark", ["vnbench", "nextqa"])
def test_a_byte_order_mark(tmp_path, make_videos, benchmark):
    raw = write_release(tmp_path / "raw", benchmark)
    for file in raw.iterdir():
        file.write_text(file.read_text(), encoding="utf-8-sig")
    assert prepare(benchmark, raw, make_videos(benchmark), tmp_path / "data").complete


@pytest.mark.parametrize("copy", [False, True])
def test_another_video_of_the_same_name_takes_its_place(tmp_path, make_videos, copy):
    raw, videos, out = write_release(tmp_path / "raw", "nextqa"), make_videos("nextqa"), tmp_path / "data"
    prepare("nextqa", raw, videos, out, copy=copy)
    (videos / "clip0.mp4").write_bytes((videos / "clip1.mp4").read_bytes())
    prepare("nextqa", raw, videos, out, copy=copy)
    assert written(out, "nextqa")[0]["duration"] == "medium"


def test_missing_video_is_listed_and_nothing_is_written(tmp_path, make_videos):
    raw, videos, out = (
        write_release(tmp_path / "raw", "vnbench"),
        make_videos("vnbench", only="short"),
        tmp_path / "data",
    )
    report = prepare("vnbench", raw, videos, out)
    assert report.missing == ("clip1_cnt_edit1",)
    assert report.annotations is None
    assert not (out / "vnbench" / "annotations").exists()
    assert "  clip1_cnt_edit1" in report.lines()

    skipped = prepare("vnbench", raw, videos, out, skip_missing=True)
    assert (skipped.left_out, len(written(out, "vnbench"))) == (2, 2)

    make_videos("vnbench")  # found in the meantime
    assert prepare("vnbench", raw, videos, out).complete
    assert len(written(out, "vnbench")) == 4


def test_broken_video_is_listed_with_its_reason(tmp_path, make_videos):
    videos = make_videos("nextqa")
    (videos / "clip1.mp4").write_bytes(b"not a video")
    report = prepare("nextqa", write_release(tmp_path / "raw", "nextqa"), videos, tmp_path / "data")
    assert list(report.broken) == ["clip1"]
    assert report.annotations is None
    assert not report.complete


def test_a_second_run_measures_nothing_again(tmp_path, make_videos, monkeypatch):
    raw, videos, out = write_release(tmp_path / "raw", "nextqa"), make_videos("nextqa"), tmp_path / "data"
    prepare("nextqa", raw, videos, out)

    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr("sttm_lmms.benchmarks.prepare.videos.probe", refuse)
    assert prepare("nextqa", raw, videos, out).complete
    (videos / "clip0.mp4").write_bytes((videos / "clip1.mp4").read_bytes())
    with pytest.raises(AssertionError, match="measured again"):
        prepare("nextqa", raw, videos, out)


def test_half_written_lengths_do_not_matter(tmp_path, make_videos):
    raw, videos, out = write_release(tmp_path / "raw", "nextqa"), make_videos("nextqa"), tmp_path / "data"
    prepare("nextqa", raw, videos, out)
    (out / "nextqa" / "durations.json").write_text('{"clip0": [1')
    assert prepare("nextqa", raw, videos, out).complete


def test_links_and_copies(tmp_path, make_videos):
    raw, videos = write_release(tmp_path / "raw", "nextqa"), make_videos("nextqa")
    prepare("nextqa", raw, videos, tmp_path / "linked")
    prepare("nextqa", raw, videos, tmp_path / "copied", copy=True)
    assert (tmp_path / "linked/nextqa/videos/clip0.mp4").is_symlink()
    copied = tmp_path / "copied/nextqa/videos/clip0.mp4"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (videos / "clip0.mp4").read_bytes()


@pytest.mark.parametrize("benchmark", ["mlvu", "videomme"])
def test_videos_already_in_place(tmp_path, make_videos, benchmark):
    raw, out = write_release(tmp_path / "raw", benchmark), tmp_path / "data"
    prepare(benchmark, raw, make_videos(benchmark), out, copy=True)
    assert prepare(benchmark, raw, video_folder(out, benchmark), out).complete


def test_two_videos_of_one_name_are_refused(tmp_path, make_videos):
    videos = make_videos("nextqa")
    (videos / "more").mkdir()
    (videos / "more" / "clip0.mp4").write_bytes(b"another")
    with pytest.raises(AnnotationError, match="two videos are called clip0"):
        prepare("nextqa", write_release(tmp_path / "raw", "nextqa"), videos, tmp_path / "data")


def set_key(number, key, value):
    return lambda records: records[number].__setitem__(key, value)


@pytest.mark.parametrize(
    ("benchmark", "change", "message"),
    [
        ("vnbench", set_key(1, "colour", "red"), "record 1: unknown keys 'colour'.*--ignore 'colour'"),
        ("vnbench", lambda records: records[2].pop("gt_option"), "record 2: missing keys 'gt_option'"),
        ("vnbench", set_key(0, "gt_option", "E"), "record 0: answer 'E' is not among"),
        ("vnbench", set_key(3, "video", ".."), "'..' is not a plain file name"),
        ("mlvu", set_key(1, "answer", "white"), "record 1: answer 'white' is not among the candidates"),
        ("longvideobench", set_key(1, "correct_choice", 3), "record 1: answer 3 is not among"),
        ("longvideobench", set_key(1, "video_id", "../clip1"), "is not a plain file name"),
        ("longvideobench", set_key(1, "id", "clip0_0"), "record 1: question_id 'clip0_0' is that of record 0"),
        ("videomme", set_key(0, "extra", 1), "record 0: unknown keys 'extra'"),
        ("nextqa", set_key(1, "answer", "five"), "record 1: "),
        ("nextqa", set_key(1, "answer", "7"), "record 1: answer 'H' is not among"),
        ("nextqa", set_key(1, "answer", "70"), "record 1: "),
        ("vnbench", set_key(1, "options", None), "record 1: "),
        ("egoschema", lambda records: records[1].pop("option 4"), "record 1: missing keys 'option 4'"),
    ],
)
def test_malformed_releases(tmp_path, make_videos, benchmark, change, message):
    raw = write_release(tmp_path / "raw", benchmark, change)
    with pytest.raises(AnnotationError, match=message):
        prepare(benchmark, raw, make_videos(benchmark), tmp_path / "data", skip_missing=True)
    assert not list((tmp_path / "data").glob("*/annotations/*.json"))


def test_unknown_key_can_be_ignored(tmp_path, make_videos):
    raw = write_release(tmp_path / "raw", "vnbench", lambda records: [r.update(colour="red") for r in records])
    assert prepare("vnbench", raw, make_videos("vnbench"), tmp_path / "data", ignore=["colour"]).complete


def test_missing_folders_and_files(tmp_path, make_videos):
    with pytest.raises(AnnotationError, match="pass the annotation file or its folder as --raw"):
        prepare("vnbench", tmp_path, tmp_path, tmp_path / "data")
    with pytest.raises(AnnotationError, match="pass the folder of the videos as --videos"):
        prepare("vnbench", write_release(tmp_path / "raw", "vnbench"), tmp_path / "none", tmp_path / "data")
    with pytest.raises(ValueError, match="unknown benchmark"):
        prepare("vnbnch", tmp_path, tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    ("seconds", "name"),
    [(0.5, "short"), (59.99, "short"), (60, "medium"), (119.9, "medium"), (120, "long"), (7200, "long")],
)
def test_duration_classes(seconds, name):
    assert duration_class(seconds) == name


def test_check_lists_what_is_missing(data_root):
    report = check(data_root, "nextqa")
    assert report.missing == ("100", "200")
    assert not report.complete
    assert "(published: 8564 on 1000)" in report.lines()[0]


def test_command_line(tmp_path, make_videos, monkeypatch):
    raw, videos = write_release(tmp_path / "raw", "vnbench"), make_videos("vnbench", only="short")
    monkeypatch.setenv("STTM_DATA_ROOT", str(tmp_path / "data"))
    command = ["vnbench", "--raw", str(raw), "--videos", str(videos)]
    run = CliRunner().invoke(app, command)
    assert (run.exit_code, "clip1_cnt_edit1" in run.output) == (1, True)
    make_videos("vnbench")
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert "4 questions on 2 videos" in run.output
    assert CliRunner().invoke(app, ["check"]).exit_code == 0
    assert CliRunner().invoke(app, ["check", "mlvu"]).exit_code == 1
    (tmp_path / "data/vnbench/videos/clip0_cnt_edit1.mp4").unlink()
    run = CliRunner().invoke(app, ["check", "vnbench"])
    assert (run.exit_code, "1 videos are missing" in run.output) == (1, True)


def test_every_format_has_a_converter():
    assert set(RELEASES) == set(FORMATS)
