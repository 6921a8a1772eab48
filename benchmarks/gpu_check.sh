#!/usr/bin/env bash
# Ten minutes of a GPU: are the kernels right on it, and what do they reach? Attention, a training step with its MFU, decoding.
#
#   bash benchmarks/gpu_check.sh [OUT]      results go to OUT (default: runs/gpu_check), each part's text and numbers
#
# Needs the project installed with its GPU extra (pip install -e '.[cuda]') and torch and transformers beside it, which decoding is compared with.
# Where there is no GPU the sizes are tiny: that rehearses the script and says nothing of speed. PYTHON names another interpreter.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python}
out=${1:-runs/gpu_check}
mkdir -p "$out"

platform=$($python -c 'import jax; print(jax.default_backend())') || exit 2
echo "on $platform; results in $out"
if [ "$platform" = gpu ]; then
    attention=(--row-tokens 4096 --rows 4 --heads 32 --kv-heads 8 --head-dim 128)
    step=(--pairs 64 --d-model 2048 --layers 16 --dtype bfloat16 --ways tree packed sft)
    decode=(--cases rows --rows 16 --new 64)
    codecode=(--rows 16 --new 64 --width 2048 --layers 16 --expert-width 512 --repeats 2)
else
    attention=(--row-tokens 1024 --rows 1 --heads 2 --kv-heads 1 --head-dim 16 --repeats 1)
    step=(--pairs 2 --d-model 64 --layers 1 --ways tree sft --repeats 1)
    decode=(--cases rows --rows 2 --prompt 16 --preamble 32 --new 4 --long 128 --repeats 1)
    codecode=(--rows 1 --new 8 --width 128 --layers 1 --expert-width 64 --expert-layers 1 --vocab 256 --repeats 1)
fi

failed=()
# A part's name, the seconds that it may take, and its command. What it prints is kept; a part that fails leaves the others their turn.
part() {
    local name=$1 seconds=$2
    shift 2
    printf '\n== %s\n' "$name"
    timeout "$seconds" "$python" -m "$@" 2>&1 | tee "$out/$name.txt" || failed+=("$name")
}

part doctor 130 lpo_jax.cli doctor --device
part attention 100 benchmarks.attention "${attention[@]}" --json "$out/attention.json"
part step 150 benchmarks.step "${step[@]}" --json "$out/step.json"
part decode 100 benchmarks.decode "${decode[@]}" --json "$out/decode.json"
part codecode 120 benchmarks.codecode "${codecode[@]}" --json "$out/codecode.json"

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed, or took too long: %s\n' "${failed[*]}" >&2
    exit 1
fi
printf '\nall parts are done: %s\n' "$out"
