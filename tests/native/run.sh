#!/usr/bin/env bash
# Compile the kernels with native tests and run them: run.sh [PART ...]. The default is all parts:
#
# cpu      the CPU kernels with the tests in cpu/, in three ways: with OpenMP and without threads,
#          under AddressSanitizer and UndefinedBehaviorSanitizer; and with std::thread instead of
#          OpenMP, under ThreadSanitizer, which does not see how the threads of libgomp synchronise
# cuda     the CUDA kernels with test_cuda.cpp for the host, where shim.h takes the place of a GPU:
#          all cases, and some of them under the sanitizers
# clang    the CPU kernels compiled by Clang, with OpenMP and without threads, under the sanitizers
#          if Clang has them; skipped if there is no Clang
# aarch64  the CPU kernels compiled for AArch64, without threads, and run by qemu; skipped if there
#          is no cross compiler or no qemu
#
# The variable CXX names the compiler of the first two parts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

# The flags that choose the language are those of setup.py.
flags=(-std=c++17 -O2 -g -fno-omit-frame-pointer -ffp-contract=fast -fno-lto
  -Wall -Wextra -Werror -Wno-psabi -pthread -I csrc)
memory=(-fsanitize=address,undefined -fno-sanitize-recover=all)
threads=(-DRNNFAST_LIBGOMP)

# Compile with `compiler` and run by `emulator`: check NAME FLAG ...
check() {
  local name=$1 start=$SECONDS
  shift
  mkdir "$temporary/$name"
  printf '%s\n' csrc/cpu/{,*/}*.cpp tests/native/cpu/*.cpp |
    xargs -P "$(nproc)" -I {} bash -c '"${@:2}" -c "$1" -o "'"$temporary/$name"'/${1##*/}.o"' \
      _ {} "$compiler" "${flags[@]}" -DRNNFAST_TEST_ISAS "$@"
  "$compiler" "$@" -pthread "$temporary/$name"/*.o -o "$temporary/$name/test" -lgomp
  # A waiting thread must give up its core, because there may be fewer cores than threads.
  OMP_WAIT_POLICY=passive TSAN_OPTIONS=halt_on_error=1 "${emulator[@]}" "$temporary/$name/test"
  printf '%s: %d s\n' "$name" $((SECONDS - start))
}

part_cpu() {
  check memory-openmp "${memory[@]}" "${threads[@]}"
  check memory-one-thread "${memory[@]}"
  check threads -fsanitize=thread -DRNNFAST_STD_THREADS
}

# Print the first of the given programs that exists.
first_of() {
  local program
  for program; do
    command -v "$program" && return
  done
  return 1
}

part_clang() {
  local sanitizers=("${memory[@]}")
  if ! compiler=$(first_of clang++ clang++-{22..14}); then
    echo 'clang: skipped, there is no clang++'
    return
  fi
  "$compiler" --version
  if ! "$compiler" "${memory[@]}" -x c++ - -o "$temporary/probe" <<<'int main() {}' 2>/dev/null; then
    echo 'clang: no sanitizers, because its libraries (libclang-rt) are not installed'
    sanitizers=()
  fi
  check clang-openmp "${sanitizers[@]}" "${threads[@]}"
  check clang-one-thread "${sanitizers[@]}"
}

part_aarch64() {
  local qemu
  if ! compiler=$(first_of aarch64-linux-gnu-g++); then
    echo 'aarch64: skipped, there is no aarch64-linux-gnu-g++'
  elif ! qemu=$(first_of qemu-aarch64 qemu-aarch64-static); then
    echo 'aarch64: skipped, there is no qemu-aarch64'
  else
    emulator=("$qemu" -L /usr/aarch64-linux-gnu)
    check aarch64
  fi
}

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

part_cuda() {
  check_cuda cuda 8 '1 2 3 4 5 6 7 8'
  # 61 parts, so that every kernel meets every size, forward and backward. ThreadSanitizer takes
  # minutes and gigabytes for such a part, so it gets two parts of 488.
  check_cuda cuda-memory 61 '1 12 23 34' "${memory[@]}"
  check_cuda cuda-threads 488 '1 245' -fsanitize=thread
}

[ $# -gt 0 ] || set -- cpu cuda clang aarch64
for part; do
  compiler=${CXX:-c++} emulator=()
  "part_$part"
done
