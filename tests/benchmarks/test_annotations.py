"""Annotation files: good ones load, malformed ones are refused by file and record number."""

import json

import pytest

from sttm_lmms.benchmarks import FORMATS, get_format, load_benchmark, load_questions
from sttm_lmms.benchmarks.data import annotation_file, find_video
from sttm_lmms.benchmarks.data import data_root as find_data_root
from sttm_lmms.errors import AnnotationError

DROP = object()


def records(data_root, benchmark):
    return json.loads(annotation_file(data_root, get_format(benchmark)).read_text())


def write(tmp_path, content):
    path = tmp_path / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("benchmark", FORMATS)
def test_small_files_load(data_root, benchmark):
    questions = load_benchmark(benchmark, data_root)
    assert len(questions) == len(records(data_root, benchmark))
    for question in questions:
        assert question.answer in question.letters
        assert [option[:3] for option in question.options] == [f"{letter}. " for letter in question.letters]
        assert set(question.categories) == set(get_format(benchmark).categories)


def test_letters_are_added_where_the_file_has_none(data_root):
    question = load_benchmark("longvideobench", data_root)[2]
    assert question.options == ("A. a man", "B. a woman", "C. a child", "D. a dog", "E. nobody")
    assert (question.answer, question.categories["duration"]) == ("E", "15")


def test_vnbench_task_type_is_that_of_the_file_name(data_root):
    question = load_benchmark("vnbench", data_root)[0]
    assert records(data_root, "vnbench")[0]["task_type"] == "ret_insert2"
    assert question.categories["task_type"] == "ret_insert1"


def test_egoschema_without_an_answer(data_root, tmp_path):
    raw = records(data_root, "egoschema")
    del raw[1]["answer"]
    assert [q.answer for q in load_questions(write(tmp_path, raw), "egoschema")] == ["C", None]


MALFORMED = [
    ("vnbench", {"question": DROP}, "'question' is missing"),
    ("vnbench", {"videoID": DROP}, "'videoID' is missing"),
    ("vnbench", {"task_type": DROP}, "'task_type' is missing"),
    ("vnbench", {"answer": "E"}, "answer 'E' is not among the options A, B, C, D"),
    ("vnbench", {"answer": ""}, "answer '' is not among"),
    ("vnbench", {"answer": 0}, "answer is 0, expected a string"),
    ("vnbench", {"videoID": "../clip"}, "videoID '../clip' is not a plain file name"),
    ("vnbench", {"videoID": ".."}, "is not a plain file name"),
    ("vnbench", {"videoID": "a\\b"}, "is not a plain file name"),
    ("vnbench", {"videoID": "a\0"}, "is not a plain file name"),
    ("vnbench", {"videoID": ""}, "is not a plain file name"),
    ("vnbench", {"options": ["one.", "B. two."]}, "option 'one.' does not begin with 'A. '"),
    ("vnbench", {"options": ["A. one."]}, "options must be 2 to 8 strings"),
    ("vnbench", {"options": "A. one."}, "expected a list"),
    ("vnbench", {"question": " "}, "question is empty"),
    ("videomme", {"domain": DROP}, "'domain' is missing"),
    ("videomme", {"answer": None}, "answer is None, expected a string"),
    ("longvideobench", {"answer": 4}, "answer 4 is not among the 4 options (0 to 3)"),
    ("longvideobench", {"answer": -1}, "answer -1 is not among"),
    ("longvideobench", {"answer": True}, "expected an integer"),
    ("mlvu", {"options": [1, 2, 3, 4]}, "options must be 2 to 8 strings"),
    ("mlvu", {"video_id": "/etc/passwd"}, "is not a plain file name"),
    ("nextqa", {"answer": "F"}, "answer 'F' is not among the options A, B, C, D, E"),
    ("nextqa", {"video_id": 1.5}, "expected a string or an integer"),
    ("egoschema", {"option 3": DROP}, "'option 3' is missing"),
    ("egoschema", {"answer": 5}, "answer 5 is not among"),
    ("egoschema", {"q_uid": "x/y"}, "q_uid 'x/y' is not a plain file name"),
]


@pytest.mark.parametrize(("benchmark", "change", "message"), MALFORMED)
def test_malformed_records_are_refused_by_number(data_root, tmp_path, benchmark, change, message):
    raw = records(data_root, benchmark)
    raw[1] = {key: value for key, value in {**raw[1], **change}.items() if value is not DROP}
    path = write(tmp_path, raw)
    with pytest.raises(AnnotationError) as error:
        load_questions(path, benchmark)
    assert str(error.value).startswith(f"{path}: record 1: ")
    assert message in str(error.value)


@pytest.mark.parametrize("benchmark", FORMATS)
def test_duplicate_ids_are_refused_by_number(data_root, tmp_path, benchmark):
    raw = records(data_root, benchmark)
    path = write(tmp_path, [*raw, raw[0]])
    with pytest.raises(AnnotationError, match=f"record {len(raw)}: .* is that of record 0"):
        load_questions(path, benchmark)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a JSON file"),
        ("{", "not a JSON file"),
        ("{}", "expected a JSON list of records, found an object"),
        ("[]", "found an empty list"),
        ("[1]", "record 0: expected an object, found 1"),
    ],
)
def test_not_a_list_of_records(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(AnnotationError, match=str(path)) as error:
        load_questions(path, "mlvu")
    assert message in str(error.value)


def test_missing_file_names_the_way_out(tmp_path):
    with pytest.raises(AnnotationError) as error:
        load_benchmark("vnbench", tmp_path)
    assert str(tmp_path / "vnbench" / "annotations" / "VNBench-main-4try_v2.json") in str(error.value)
    assert "STTM_DATA_ROOT" in str(error.value)
    assert "sttm-lmms prepare vnbench" in str(error.value)


def test_unknown_benchmark_offers_the_closest():
    with pytest.raises(ValueError, match="Did you mean 'videomme'"):
        get_format("videome")


def test_second_file_name_of_egoschema(data_root, tmp_path):
    folder = tmp_path / "egoschema" / "annotations"
    folder.mkdir(parents=True)
    (folder / "questions.json").write_text(json.dumps(records(data_root, "egoschema")))
    assert len(load_benchmark("egoschema", tmp_path)) == 2


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_data_root({}) == tmp_path / "datasets"
    assert find_data_root({"STTM_DATA_ROOT": "data"}) == tmp_path / "data"
    assert find_data_root({"STTM_DATA_ROOT": "/srv/data"}).as_posix() == "/srv/data"


def test_find_video(tmp_path):
    assert find_video(tmp_path, "a") == tmp_path / "a.mp4"
    (tmp_path / "a.mkv").touch()
    assert find_video(tmp_path, "a") == tmp_path / "a.mkv"
    (tmp_path / "a.mp4").touch()
    assert find_video(tmp_path, "a") == tmp_path / "a.mp4"


@pytest.mark.parametrize("suffix", [".MP4", ".MOV", ".mov", ".m4v", ".gif", ".WEBM"])
def test_containers_in_any_case(tmp_path, suffix):
    (tmp_path / f"a{suffix}").touch()
    assert find_video(tmp_path, "a") == tmp_path / f"a{suffix}"


def test_a_byte_order_mark_and_half_a_surrogate_pair(tmp_path):
    record = {
        "videoID": "clip",
        "question_id": "1",
        "question": "A \ud83d bike \ud83d\ude00?",
        "options": ["A. \udc00", "B. n"],
    }
    record |= {"answer": "A", "duration": "short", "task_type": "t", "domain": "d", "sub_category": "s"}
    (tmp_path / "a.json").write_text(json.dumps([record]), encoding="utf-8-sig")
    (question,) = load_questions(tmp_path / "a.json", "videomme")
    assert question.question == "A \ufffd bike \U0001f600?"
    assert question.options == ("A. \ufffd", "B. n")
