#!/usr/bin/env bash
# Runs one cell of the paper's tables (arXiv 2507.07990) with the published frames, thresholds and prompt.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/reproduce.sh MODEL BENCHMARK BUDGET [GPUS] [--dry-run] [--pretrained PATH] [--output DIR] [-- ARGUMENTS]
       scripts/reproduce.sh all MODEL [GPUS] [OPTIONS]    every cell of MODEL; finished ones are skipped

  MODEL      llava-video-7b | llava-video-72b | llava-onevision-7b | qwen2-vl-7b
  BENCHMARK  vnbench | videomme | longvideobench | mlvu | egoschema | nextqa
             field | field-64 (sttm_field: the harness's own tasks, 32 or 64 frames; BUDGET is any percentage)
  BUDGET     50 | 30 | 50-root2 | 30-root2 (Qwen2-VL as in the later published code)
             100 (all tokens, no newline tokens) | 100-newline (LLaVA: all tokens and a newline token after each row)
  GPUS       1 by default, 4 for the 72B model. Several GPUs hold a copy of a 7B model each, or share a 72B model.

  --dry-run          print the command (and the settings in it, on the error output) and do nothing
  --pretrained PATH  a local checkpoint instead of the hub's
  --output DIR       folder of the results; outputs/reproduce/MODEL/BENCHMARK/BUDGET by default
  -- ARGUMENTS       handed on to lmms-eval, for example -- --limit 8

The data come from $STTM_DATA_ROOT (./datasets by default); see `sttm-lmms prepare`. PYTHON names the interpreter.
CUDA_VISIBLE_DEVICES is kept where it is set.
TEXT
}

fail() {
    echo "error: $1" >&2
    echo "see scripts/reproduce.sh --help" >&2
    exit 2
}

[ "${1:-}" != all ] || { shift; exec "${PYTHON:-python}" "$(dirname "$0")/sweep.py" "$@"; }  # every cell of a model

positional=() extra=() dry_run=false pretrained="" output=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --dry-run) dry_run=true ;;
        --pretrained | --output)
            [ $# -gt 1 ] || fail "$1 needs a value"
            if [ "$1" = --pretrained ]; then pretrained=$2; else output=$2; fi
            shift ;;
        --) shift; extra=("$@"); break ;;
        -*) fail "unknown option $1" ;;
        *) positional+=("$1") ;;
    esac
    shift
done
[ ${#positional[@]} -ge 3 ] && [ ${#positional[@]} -le 4 ] || { usage >&2; exit 2; }
model=${positional[0]} benchmark=${positional[1]} budget=${positional[2]}

case "$model" in
    llava-video-7b) family=llava_video size=7b hub=lmms-lab/LLaVA-Video-7B-Qwen2-Video-Only ;;
    llava-video-72b) family=llava_video size=72b hub=lmms-lab/LLaVA-Video-72B-Qwen2 ;;
    llava-onevision-7b) family=llava_onevision size=7b hub=lmms-lab/llava-onevision-qwen2-7b-ov ;;
    qwen2-vl-7b) family=qwen2_vl size=7b hub=Qwen/Qwen2-VL-7B-Instruct ;;
    *) fail "unknown model '$model'" ;;
esac
[ "$family/$budget" != qwen2_vl/100-newline ] || fail "Qwen2-VL has no newline tokens; its BUDGET is 100"
case "$benchmark" in
    field | field-64) task=sttm_field preset=${benchmark/%field/field-32} known='100|[1-9][0-9]?' ;;
    *) task=sttm_$benchmark preset=paper-$budget known='(50|30)(-root2)?|100(-newline)?' ;;
esac
[[ "$budget" =~ ^($known)$ ]] || fail "unknown budget '$budget'"
gpus=${positional[3]:-$([ "$size" = 72b ] && echo 4 || echo 1)}
[[ "$gpus" =~ ^[1-9][0-9]*$ ]] || fail "GPUS must be a positive number, not '$gpus'"

python=${PYTHON:-python}
arguments="pretrained=${pretrained:-$hub}"

# Frames and thresholds of the paper; a benchmark or preset that does not exist ends here, with the list.
paper_settings() {
    "$python" - "$preset" "$family" "$size" "$benchmark" <<'CODE'
import sys

from sttm_lmms.benchmarks.formats import get_format
from sttm_lmms.benchmarks.presets import resolve_frames, resolve_preset

preset, family, size, benchmark = sys.argv[1:]
try:
    task = f"sttm_{get_format(benchmark).name}"
    frames = settings = resolve_frames(family, task)
    if not preset.startswith("paper-100"):
        settings = resolve_preset(preset, family=family, size=size, task=task)
except ValueError as error:
    sys.exit(f"error: {error}")
print(*(f"{name}={value}" for name, value in vars(settings).items()), file=sys.stderr)
print(f"max_frames={frames.max_frames},fps={frames.fps}")
CODE
}

case "$task/$budget" in
    sttm_field/100) arguments+=",preset=$preset,method=none" ;;
    sttm_field/*) arguments+=",preset=$preset,budget=$(printf 0.%02d "$budget")" ;;
    *)
        frames=$(paper_settings) || exit 2
        case "$budget" in
            100*) arguments+=",method=none,$frames" ;;
            *) arguments+=",preset=$preset:$size" ;;
        esac
        # LLaVA-Video checkpoints have the layout with newlines by themselves, the published OneVision baseline was
        # given it.
        case "$family/$budget" in
            qwen2_vl/*) ;;
            */100) arguments+=",newline=no_token" ;;
            llava_onevision/100-newline) arguments+=",newline=grid" ;;
        esac ;;
esac

# `sttm-lmms eval` is lmms-eval with our tasks on its path, and fails where lmms-eval reports a failed run as a success.
command=("$python" -m sttm_lmms eval)
if [ "$size" = 72b ]; then
    arguments+=",device_map=auto"
    if [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then
        command=(env "CUDA_VISIBLE_DEVICES=$(seq -s, 0 $((gpus - 1)))" "${command[@]}")
    fi
elif [ "$gpus" -gt 1 ]; then
    command=("$python" -m accelerate.commands.launch --num_processes "$gpus" -m sttm_lmms eval)
fi
command+=(
    --model "sttm_$family" --model_args "$arguments" --tasks "$task"
    --batch_size 1 --log_samples --output_path "${output:-outputs/reproduce/$model/$benchmark/$budget}"
)
command+=(${extra[@]+"${extra[@]}"})

printf '%q ' "${command[@]}"
echo
if [ "$dry_run" = false ]; then exec "${command[@]}"; fi
