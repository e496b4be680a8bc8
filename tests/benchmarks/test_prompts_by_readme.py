"""The rule in each task's README against the prompts of all records, applied to the raw files by
hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sttm_lmms.benchmarks import FORMATS, load_benchmark
from sttm_lmms.benchmarks.documents import doc_to_messages, doc_to_text, documents

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "annotations"
REAL = ROOT.parent / "shared" / "annotations"


def rule(benchmark: str) -> tuple[list[str], dict[int, str]]:
    """The four lines of the template, and the letters by number of options."""
    section = (ROOT / "tasks" / benchmark / "README.md").read_text().split("**Prompt.**")[1]
    lines = re.search(r"```\n(.*?)\n```", section, re.DOTALL)[1].split("\n")
    assert len(lines) == 4
    return lines, {int(n): letters for n, letters in re.findall(r"^\| (\d) \| (A, .*) \|$", section, re.MULTILINE)}


def by_hand(record: dict, benchmark: str) -> str:
    (instruction, question, option, lead_out), letters = rule(benchmark)
    texts = record.get("options") or [record[f"option {i}"] for i in range(5)]
    shown = [option.format(letter="ABCDEF"[i], option=text) for i, text in enumerate(texts)]
    heads = [instruction.format(letters=letters[len(texts)]), question.format(question=record["question"])]
    return "\n".join([*heads, *shown, lead_out])


def compare(root: Path, benchmark: str) -> int:
    (file,) = [path for name in FORMATS[benchmark].files if (path := root / benchmark / "annotations" / name).is_file()]
    docs = documents(load_benchmark(benchmark, root), benchmark, root)
    records = json.loads(file.read_text())
    assert [doc_to_text(doc) for doc in docs] == [by_hand(record, benchmark) for record in records]
    return len(records)


@pytest.mark.parametrize("benchmark", FORMATS)
def test_small_files(benchmark):
    assert compare(GOLDEN, benchmark)


@pytest.mark.parametrize(
    ("benchmark", "records"),
    [("vnbench", 5400), ("videomme", 2700), ("longvideobench", 1337), ("mlvu", 2174), ("nextqa", 8564)],
)
def test_published_files(benchmark, records):
    if not (REAL / benchmark).is_dir():
        pytest.skip(f"no published annotation file of {benchmark} at ../shared/annotations")
    assert compare(REAL, benchmark) == records


def test_longvideobench_offers_one_letter_too_many_unless_mended():
    docs = documents(load_benchmark("longvideobench", GOLDEN), "longvideobench", GOLDEN)
    for doc, published, mended in zip(docs, ("A, B, C, or D", "C, D, or E", "D, E, or F"), "CDE", strict=True):
        assert f"{published}) of the" in doc_to_text(doc)
        assert f"or {mended}) of the" in doc_to_text(doc, {"prompt": "mended"})
        assert doc_to_messages(doc, {"prompt": "mended"})[0]["content"][1]["text"] == doc_to_text(
            doc, {"prompt": "mended"}
        )
    with pytest.raises(ValueError, match="prompt='menden' is not valid; it must be one of 'published', 'mended'"):
        doc_to_text(docs[0], {"prompt": "menden"})
