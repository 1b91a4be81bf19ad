#!/usr/bin/env bash
# All there is to do when a GPU is at hand, in 20 minutes: builds in place, runs the tests of the
# device, compute-sanitizer on small cases, barriers.cu and gpu.py, and writes
# benchmarks/results/<gpu>.{json,md,png}, with what each stage printed last as notes.
#
#   benchmarks/gpu.sh [stage...]       of: build test sanitize barriers bench; all of them
#
# PYTHON names another python3 than the first on the PATH; it needs torch with CUDA, pytest,
# setuptools, pybind11 and ninja. A stage that fails does not stop the others, but the script fails.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH=. PYTHONUNBUFFERED=1
logs=build/gpu
mkdir -p "$logs"
failed=()

stage() { # name, seconds, command...
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  printf '=== %s\n' "$name"
  timeout "$seconds" "$@" 2>&1 | tee "$logs/$name.log"
  local status=${PIPESTATUS[0]}
  tail -n 25 "$logs/$name.log" >"$logs/$name.txt"
  printf '%s: exit status %d after %d s\n' "$name" "$status" $((SECONDS - start)) |
    tee -a "$logs/$name.txt"
  [ "$status" = 0 ] || failed+=("$name")
}

sanitize() {
  local tool status=0
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 5 "$python" -m pytest -q -p no:cacheprovider \
      tests/test_cuda.py -k 'rule_on_a_gpu and T7 and (bfloat16 or float32) and not batch' || status=1
  done
  return $status
}

barriers() {
  nvcc -std=c++17 -O3 -arch=native -I csrc benchmarks/barriers.cu -o "$logs/barriers" &&
    "$logs/barriers"
}

export -f sanitize barriers
export python logs
for name in "${@:-build test sanitize barriers bench}"; do
  for one in $name; do
    case $one in
    build) stage build 300 env RNNFAST_CUDA=1 "$python" setup.py -q build_ext --inplace ;;
    test) stage test 420 "$python" -m pytest -q tests/test_cuda.py tests/test_kernels.py -k 'cuda or gpu' ;;
    sanitize) stage sanitize 300 bash -c sanitize ;;
    barriers) stage barriers 60 bash -c barriers ;;
    bench)
      gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') ||
        exit 1
      notes=()
      for note in test sanitize barriers; do
        [ -f "$logs/$note.txt" ] && notes+=("$logs/$note.txt")
      done
      stage bench 480 "$python" benchmarks/gpu.py "benchmarks/results/$gpu.json" --seconds 400 \
        --notes "${notes[@]}"
      ;;
    *)
      echo "gpu.sh: no stage $one" >&2
      exit 2
      ;;
    esac
  done
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" && exit 1; }
