"""Files of a run: whole, in the order of the documents, and only where the run came to its end."""

from __future__ import annotations

import json

from sttm_lmms.output import Output, result_files


def line(number: int) -> str:
    return json.dumps({"doc_id": number, "text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n"


def test_finished_files_are_moved_and_sorted(tmp_path):
    folder = tmp_path / "runs"
    output = Output(folder, "7")
    model = output.staged / "org__model"
    model.mkdir(parents=True)
    (model / "1_results.json").write_text(json.dumps({"output_path": str(output.staged)}))
    (model / "1_samples_a.jsonl").write_text("".join(map(line, (0, 3, 1, 2))), encoding="utf-8")
    assert result_files(folder) == [], "not finished"

    published = output.publish()
    assert published == result_files(folder) == [folder / "org__model" / "1_results.json"]
    assert json.loads(published[0].read_text()) == {"output_path": str(folder)}
    samples = folder / "org__model" / "1_samples_a.jsonl"
    assert samples.read_text(encoding="utf-8") == "".join(map(line, range(4)))
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == [*published, samples]


def test_what_a_killed_run_left_goes_and_other_files_stay(tmp_path):
    mine, other = tmp_path / "notes.txt", Output(tmp_path, "other").staged
    mine.write_text("notes")
    output = Output(tmp_path, "7")
    for folder in (output.staged, other):
        folder.mkdir()
        (folder / "1_results.json").write_text("{")
    output.clear()
    assert not output.staged.exists()
    assert other.exists()
    assert mine.read_text() == "notes"
    assert output.publish() == []
