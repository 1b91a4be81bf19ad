#!/usr/bin/env bash
# Compiles test_kernels.cpp with the kernels three ways and runs it: with OpenMP and without under
# AddressSanitizer and UndefinedBehaviorSanitizer, and on std::thread under ThreadSanitizer, which
# does not see into libgomp. Then test_cuda.cpp with the CUDA kernels, on the host by shim.h: all
# cases, and some of them under the sanitizers. CXX names another compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

# The language flags of setup.py.
flags=(-std=c++17 -O2 -g -fno-omit-frame-pointer -ffp-contract=fast -fno-lto
  -Wall -Wextra -Werror -Wno-psabi -pthread -I csrc)
memory=(-fsanitize=address,undefined -fno-sanitize-recover=all)

check() {
  local name=$1 start=$SECONDS
  shift
  mkdir "$temporary/$name"
  printf '%s\n' csrc/cpu/{,*/}*.cpp tests/native/test_kernels.cpp |
    xargs -P "$(nproc)" -I {} bash -c '"${@:2}" -c "$1" -o "'"$temporary/$name"'/${1##*/}.o"' \
      _ {} "${CXX:-c++}" "${flags[@]}" "$@"
  "${CXX:-c++}" "$@" -pthread "$temporary/$name"/*.o -o "$temporary/$name/test"
  # A wait of a thread that has no core must not spin its time slice away.
  OMP_WAIT_POLICY=passive TSAN_OPTIONS=halt_on_error=1 "$temporary/$name/test"
  printf '%s: %d s\n' "$name" $((SECONDS - start))
}

check memory-openmp "${memory[@]}" -fopenmp
check memory-one-thread "${memory[@]}" -Wno-unknown-pragmas
check threads -fsanitize=thread -DRNNFAST_STD_THREADS -Wno-unknown-pragmas

# A GPU's threads, one system thread a process: of so many parts of the cases these are run.
check_cuda() {
  local name=$1 parts=$2 some=$3 start=$SECONDS
  shift 3
  mkdir "$temporary/$name"
  printf '%s\n' csrc/cuda/*.cu tests/native/test_cuda.cpp |
    xargs -P "$(nproc)" -I {} bash -c '"${@:2}" -c "$1" -o "'"$temporary/$name"'/${1##*/}.o"' \
      _ {} "${CXX:-c++}" -x c++ "${flags[@]}" -I tests/native -Wno-unknown-pragmas "$@"
  "${CXX:-c++}" "$@" "$temporary/$name"/*.o -o "$temporary/$name/test"
  printf '%s\n' $some | TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_stack_use_after_return=0 \
    xargs -P "$(nproc)" -I {} "$temporary/$name/test" {} "{}/$parts"
  printf '%s: %d s\n' "$name" $((SECONDS - start))
}

# 61 apart, so that every kernel meets every size, forward and backward.
check_cuda cuda 8 '1 2 3 4 5 6 7 8'
check_cuda cuda-memory 61 '1 12 23 34' "${memory[@]}"
check_cuda cuda-threads 122 '1 62' -fsanitize=thread
