#!/usr/bin/env bash
# Compile the CPU kernels with the tests in cpu/ in three ways and run each:
#
# - with OpenMP, under AddressSanitizer and UndefinedBehaviorSanitizer;
# - without threads, under the same sanitizers;
# - with std::thread instead of OpenMP, under ThreadSanitizer, which does not see how the threads of
#   libgomp synchronise.
#
# Then compile the CUDA kernels with test_cuda.cpp for the host, where shim.h takes the place of a
# GPU. Run all cases, and some of them under the sanitizers. The variable CXX names the compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

# The flags that choose the language are those of setup.py.
flags=(-std=c++17 -O2 -g -fno-omit-frame-pointer -ffp-contract=fast -fno-lto
  -Wall -Wextra -Werror -Wno-psabi -pthread -I csrc)
memory=(-fsanitize=address,undefined -fno-sanitize-recover=all)

check() {
  local name=$1 start=$SECONDS
  shift
  mkdir "$temporary/$name"
  printf '%s\n' csrc/cpu/{,*/}*.cpp tests/native/cpu/*.cpp |
    xargs -P "$(nproc)" -I {} bash -c '"${@:2}" -c "$1" -o "'"$temporary/$name"'/${1##*/}.o"' \
      _ {} "${CXX:-c++}" "${flags[@]}" "$@"
  "${CXX:-c++}" "$@" -pthread "$temporary/$name"/*.o -o "$temporary/$name/test"
  # A waiting thread must give up its core, because there may be fewer cores than threads.
  OMP_WAIT_POLICY=passive TSAN_OPTIONS=halt_on_error=1 "$temporary/$name/test"
  printf '%s: %d s\n' "$name" $((SECONDS - start))
}

check memory-openmp "${memory[@]}" -fopenmp
check memory-one-thread "${memory[@]}" -Wno-unknown-pragmas
check threads -fsanitize=thread -DRNNFAST_STD_THREADS -Wno-unknown-pragmas

# Each process runs the threads of a GPU on one thread of the system. The cases are divided into
# `parts` parts, of which those in the list `some` are run.
check_cuda() {
  local name=$1 parts=$2 some=$3 start=$SECONDS
  shift 3
  mkdir "$temporary/$name"
  printf '%s\n' csrc/cuda/{,*/}*.cu tests/native/test_cuda.cpp |
    xargs -P "$(nproc)" -I {} bash -c '"${@:2}" -c "$1" -o "'"$temporary/$name"'/${1##*/}.o"' \
      _ {} "${CXX:-c++}" -x c++ "${flags[@]}" -I tests/native -Wno-unknown-pragmas "$@"
  "${CXX:-c++}" "$@" "$temporary/$name"/*.o -o "$temporary/$name/test"
  printf '%s\n' $some | TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_stack_use_after_return=0 \
    xargs -P "$(nproc)" -I {} "$temporary/$name/test" {} "{}/$parts"
  printf '%s: %d s\n' "$name" $((SECONDS - start))
}

# 61 parts, so that every kernel meets every size, forward and backward. ThreadSanitizer takes minutes
# and gigabytes for such a part, so it gets two parts of 488.
check_cuda cuda 8 '1 2 3 4 5 6 7 8'
check_cuda cuda-memory 61 '1 12 23 34' "${memory[@]}"
check_cuda cuda-threads 488 '1 245' -fsanitize=thread
