#!/usr/bin/env bash
# All there is to do when a GPU is at hand. `build test train bench`, the default, takes at most 8
# minutes on 16 cores:
#
#   build      in place                                                       2 minutes at most
#   test       the tests of the device, each kernel's in a process of its own  1.5
#   train      language models with a CUDA graph: tests, and gpu_training.py   2
#   bench      gpu.py: benchmarks/results/<gpu>.{json,md,png}                  2.5 and a half
#   sanitize   compute-sanitizer on small cases                                4, by name only
#
#   benchmarks/gpu.sh [stage...]       some of them, after build
#
# A stage that fails or hangs takes nothing from the others, but the script fails. A log for each
# stage is in build/gpu; OUT names another folder for these logs and the results together, at most 7
# files. PYTHON names another python3 than the first on the PATH; it needs torch with CUDA, pytest,
# setuptools, pybind11 and ninja.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/cuda/bin PYTHONPATH=. PYTHONUNBUFFERED=1 python=${PYTHON:-python3}
export notes=build/gpu
export logs=${OUT:-$notes}
results=${OUT:-benchmarks/results}
mkdir -p "$logs" "$notes" "$results"
failed=()

stage() { # name, seconds, command...
  local name=$1 seconds=$2 start=$SECONDS status
  shift 2
  printf '=== %s\n' "$name"
  timeout -s INT -k 20 "$seconds" "$@" 2>&1 | tee "$logs/$name.log"
  status=${PIPESTATUS[0]}
  # For the notes of the results.
  tail -n 25 "$logs/$name.log" >"$notes/$name.txt"
  printf '%s: exit status %d after %d s\n' "$name" "$status" $((SECONDS - start)) |
    tee -a "$notes/$name.txt"
  [ "$status" = 0 ] || failed+=("$name")
}

build() {
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader
  nvcc --version | tail -n 2
  RNNFAST_CUDA=1 "$python" setup.py -q build_ext --inplace
}

# At the same time; one that hangs, or breaks the device for its process, leaves the others theirs.
tests() {
  local kernel which status=0 others='not cuda-auto and not [auto'
  local -A pids
  export OMP_NUM_THREADS=$(($(nproc) / 5 + 1)) TORCHINDUCTOR_COMPILE_THREADS=1
  for kernel in step grid cluster; do
    others+=" and not cuda-$kernel and not [$kernel"
  done
  for kernel in torch step grid cluster auto; do
    which="cuda-$kernel or [$kernel"
    [ "$kernel" = torch ] && which="(cuda or gpu) and $others"
    timeout -s INT -k 10 110 "$python" -m pytest -v -p no:cacheprovider --tb=short --maxfail=40 \
      -o faulthandler_timeout=60 -k "$which" \
      tests/{ops/test_cuda{,_leaky},test_kernels,nn/test_module}.py \
      >"$notes/test-$kernel.log" 2>&1 &
    pids[$kernel]=$!
  done
  for kernel in "${!pids[@]}"; do
    wait "${pids[$kernel]}" || status=1
    grep -E -A 30 '^(____|E  )' "$notes/test-$kernel.log" | head -n 200
    grep -E '^(FAILED|ERROR) ' "$notes/test-$kernel.log" | head -n 4
    printf '%s: %s\n' "$kernel" "$(tail -n 1 "$notes/test-$kernel.log")"
  done
  return $status
}

# The losses with a graph are those without one, and how many tokens a second there are with each.
train() {
  local status=0
  timeout -s INT -k 10 60 "$python" -m pytest -q -p no:cacheprovider --tb=short -k gpu \
    tests/lm/test_training_graph.py || status=1
  "$python" benchmarks/gpu_training.py || status=1
  return $status
}

# Cases of one block and of clusters, dense and packed.
sanitize() {
  local tool status=0
  local -A pids
  for tool in memcheck racecheck; do
    timeout -s INT -k 10 220 compute-sanitizer --tool $tool --error-exitcode 1 --print-limit 5 \
      "$python" -m pytest -v -p no:cacheprovider --tb=short tests/ops/test_cuda.py \
      -k 'rule_on_a_gpu and (bfloat16 or torch.float32) and (T7 and not batch or T3-B5 and time)' \
      >"$notes/$tool.log" 2>&1 &
    pids[$tool]=$!
  done
  for tool in "${!pids[@]}"; do
    wait "${pids[$tool]}" || status=1
    grep -A 8 -m 3 -E '========= (Invalid|Error|Warning|Race)' "$notes/$tool.log"
    printf '%s: %s\n' "$tool" "$(tail -n 1 "$notes/$tool.log")"
  done
  return $status
}

bench() {
  local gpu note kept=()
  gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') ||
    return
  for note in test sanitize; do
    [ -f "$notes/$note.txt" ] && kept+=("$notes/$note.txt")
  done
  "$python" benchmarks/gpu.py "$1/$gpu.json" --seconds 150 --notes "${kept[@]}"
}

export -f build tests train sanitize bench
[ $# -gt 0 ] || set -- test train bench
for name in build "${@#build}"; do
  case $name in
  '') ;; # build comes first anyway
  build) stage build 150 bash -c build ;;
  test) stage test 120 bash -c tests ;;
  train) stage train 150 bash -c train ;;
  bench) stage bench 240 bash -c 'bench "$1"' _ "$results" ;;
  sanitize) stage sanitize 240 bash -c sanitize ;;
  *)
    echo "gpu.sh: no stage $name" >&2
    exit 2
    ;;
  esac
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" && exit 1; }
