"""Record real lmms-eval result files of a toy model:
``python tests/report/harness/record_runs.py OUT``.

Everything around the answers is real: the command line, the tasks, the files. The model looks up
its answers, so that the tests know every number. The recorded files are in ``tests/golden/report``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
TASKS = ("vnbench", "sttm_videomme")
VIDEOS, QUESTIONS_PER_VIDEO = 6, 4
VISUAL_TOKENS = 784

# name, model_args, share of right answers changed, kept share per video, seconds to the first token
RUNS = (
    ("full", "pretrained=tiny/llava-video,method=none,newline=no_token", 0.0, (1.0,) * 6, 0.80),
    ("sttm-50", "pretrained=tiny/llava-video,budget=0.5", 0.1, (0.5, 0.4, 0.6, 0.5, 0.45, 0.55), 0.40),
    ("sttm-30", "pretrained=tiny/llava-video,budget=0.3", 0.3, (0.3, 0.1, 0.5, 0.3, 0.25, 0.35), 0.25),
    ("no-op", "pretrained=tiny/llava-video,budget=0.2", 0.0, (1.0,) * 6, 0.80),
    ("more-frames", "pretrained=tiny/llava-video,budget=0.4,max_frames=256", 0.2, (0.4,) * 6, 0.33),
)
BROKEN_VIDEO = ("sttm-30", "v5")


def questions(task: str) -> list[dict[str, Any]]:
    rng = random.Random(task)
    return [
        {
            "videoID": f"v{video}",
            "question": f"What happens in part {n} of video {video}?",
            "options": ["A. rain", "B. snow", "C. sun", "D. fog"],
            "answer": rng.choice("ABCD"),
            "duration": "short" if video < 3 else "long",
        }
        for video in range(VIDEOS)
        for n in range(QUESTIONS_PER_VIDEO)
    ]


@dataclass(frozen=True)
class ToyAnswer:
    """What ``sttm_lmms.runtime.Answer`` carries."""

    text: str
    visual_tokens: int
    kept_tokens: int
    input_tokens: int
    output_tokens: int
    reduced: bool
    reused: bool
    timing: dict[str, float]
    error: str | None = None
    layer_tokens: float = 0.0


def make_model(name: str) -> Any:
    from lmms_eval.api.instance import GenerationResult, TokenCounts
    from lmms_eval.api.model import lmms
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    from sttm_lmms import STTMConfig
    from sttm_lmms.provenance import RunSummary, collect_provenance
    from sttm_lmms.runtime import Answer

    model_args, wrong, kept, ttft = next(run[1:] for run in RUNS if run[0] == name)
    settings = dict(pair.split("=") for pair in model_args.split(","))
    budget = float(settings["budget"]) if "budget" in settings else None
    provenance = collect_provenance(
        method="none" if budget is None else "sttm",
        config=None if budget is None else STTMConfig(budget=budget),
        checkpoint=settings["pretrained"],
        family="llava_video",
        video=SimpleNamespace(max_frames=int(settings.get("max_frames", 128)), fps=1.0, backend="decord"),
        newline="no_token",
        reuse="prefix",
    )

    class SampleCounts(TokenCounts):
        def __init__(self, record: dict[str, Any]) -> None:
            super().__init__(record["input_tokens"], record["output_tokens"])
            self.record = record

        def to_dict(self) -> dict[str, Any]:
            return self.record

    class Toy(lmms):
        is_simple = False

        def __init__(self, **settings: Any) -> None:
            super().__init__()

        def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
            described: set[str] = set()
            seen: set[tuple[str, str]] = set()
            results, shares = [], []
            for request in requests:
                _, _, _, doc_id, task, split = request.args
                doc = self.task_dict[task][split][doc_id]
                video = doc["videoID"]
                error = "cannot be decoded" if (name, video) == BROKEN_VIDEO else None
                share = kept[int(video[1:])]
                first = (task, video) not in seen
                seen.add((task, video))
                slips = random.Random(f"{name}{task}{doc_id}").random() < wrong
                hard = random.Random(f"{task}{doc_id}").random() < 0.2
                right = doc["answer"]
                text = "" if error else {False: right, True: "ABCD"["ABCD".index(right) - 1]}[slips != hard]
                answer = ToyAnswer(
                    text=text,
                    visual_tokens=0 if error else VISUAL_TOKENS,
                    kept_tokens=0 if error else round(VISUAL_TOKENS * share),
                    input_tokens=VISUAL_TOKENS + 40,
                    output_tokens=1,
                    reduced=share < 1 and not error,
                    reused=not first,
                    timing={}
                    if error
                    else {"ttft": ttft if first else ttft / 10, "vision": 0.5, "end_to_end": 1 + ttft},
                    error=error,
                )
                record = Answer.record(answer, video=video, provenance=None if task in described else provenance)
                described.add(task)
                shares.append(share)
                results.append(GenerationResult(text, SampleCounts(record)))
            summary = RunSummary(
                questions=len(results),
                failures=int(name == BROKEN_VIDEO[0]),
                reduction_asked=int(budget is not None),
                reduced_share=sum(s < 1 for s in shares) / len(shares),
                requested_budget=budget,
                kept_share_mean=sum(shares) / len(shares),
                kept_share_min=min(shares),
                kept_share_max=max(shares),
                ttft_s=ttft,
            )
            log_metrics(
                total_elapsed_time=10.0,
                total_gen_tokens=len(results),
                avg_speed=1.0,
                additional_metrics=summary.metrics(),
            )
            return results

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError("the toy task only generates")

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError("the toy task has one round")

    return Toy


def record(name: str, model: str, model_args: str) -> None:
    """Run lmms-eval's command line once, in this process and folder; paths in the files stay
    relative."""
    from lmms_eval.__main__ import cli_evaluate

    sys.argv = ["lmms-eval", "--model", model, "--model_args", model_args, "--tasks", ",".join(TASKS)]
    sys.argv += ["--include_path", "tasks", "--output_path", f"runs/{name}", "--batch_size", "1", "--log_samples"]
    sys.argv += ["--timezone", "UTC"]
    cli_evaluate()


def main(out: Path) -> None:
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.models.registry_v2 import ModelManifest

    module: Any = sys.modules[__name__]
    manifest = ModelManifest("toy_video", chat_class_path=f"{__name__}.Toy")
    MODEL_REGISTRY_V2.register_manifest(manifest)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("tasks").mkdir()
        shutil.copy(HERE / "toy_scores.py", "tasks")
        for task in TASKS:
            Path(f"{task}.json").write_text(json.dumps(questions(task)))
            Path(f"tasks/{task}.yaml").write_text((HERE / "toy.yaml").read_text().replace("TASK", task))
        for name, model_args, *_ in RUNS:
            module.Toy = make_model(name)
            record(name, "toy_video", model_args)
        record("foreign", "dummy", "response=A")
        shutil.copytree("runs", out, dirs_exist_ok=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(Path(sys.argv[1]).resolve())
