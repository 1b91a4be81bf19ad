#!/usr/bin/env bash
# Compile the kernels with native tests and run them: run.sh [PART ...]. The default is all parts:
#
# cpu      the CPU kernels with the tests in cpu/, in three ways: with OpenMP and without threads,
#          under AddressSanitizer and UndefinedBehaviorSanitizer; and with std::thread instead of
#          OpenMP, under ThreadSanitizer, which does not see how the threads of libgomp synchronise.
#          The build with OpenMP runs all instruction sets, the other two run three of them
# clang    the CPU kernels compiled by Clang, with OpenMP and without threads, under the sanitizers
#          if Clang has them; skipped if there is no Clang
# aarch64  the CPU kernels compiled for AArch64, without threads, and run by qemu; skipped if there
#          is no cross compiler or no qemu
# cuda     the CUDA kernels with test_cuda*.cpp for the host, where shim.h takes the place of a GPU:
#          all cases, and some of them under the sanitizers
#
# A test with OpenMP runs alone as soon as it is compiled, because the kernels use fewer threads
# where other processes compute. All other tests run at the end, as many at a time as there are
# cores. The variable CXX names the compiler of the parts `cpu` and `cuda`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
: >"$temporary/later"

# The flags that choose the language are those of setup.py. -g1 is enough for the line numbers in
# the reports of the sanitizers, and the compiler takes a quarter less time than with -g.
flags=(-std=c++17 -O2 -g1 -fno-omit-frame-pointer -ffp-contract=fast -fno-lto
  -Wall -Wextra -Werror -Wno-psabi -pthread -I csrc)
memory=(-fsanitize=address,undefined -fno-sanitize-recover=all)
# With -O2, GCC takes twice as long for these sanitizers. Clang does not.
gcc_memory=("${memory[@]}" -O1)
# How the kernels run threads: csrc/cpu/parallel.h reads these macros.
openmp=-DRNNFAST_LIBGOMP std_threads=-DRNNFAST_STD_THREADS one_thread=-URNNFAST_LIBGOMP

# Run a test, and print its output and how long it took: run_test NAME COMMAND ...
# It fails with the status 255, after which xargs starts no other test.
run_test() {
  local output status=0 start=$SECONDS
  output=$("${@:2}" 2>&1) || status=255
  printf '%s\n%s: %d s\n' "$output" "$1" $((SECONDS - start))
  [ $status = 0 ] || printf '%s has FAILED\n' "$1"
  return $status
}
export -f run_test

# Run a test at the end: run_later NAME COMMAND ...
run_later() {
  printf '%q ' "$@" >>"$temporary/later"
  echo >>"$temporary/later"
}

# Compile the sources whose names are read, into a folder: compile FOLDER COMMAND ...
compile() {
  mkdir -p "$1"
  xargs -P "$(nproc)" -I {} bash -c '"${@:3}" -c "$1" -o "$2/${1##*/}.o"' _ {} "$@"
}

# Compile with `compiler` and run by `emulator`: check NAME THREADS FLAG ...
# Only the sources that include parallel.h depend on THREADS. The objects of all other sources are
# shared by the checks that have the same compiler and flags.
check() {
  local name=$1 threads=$2 shared start=$SECONDS
  local sources=(csrc/cpu/{,*/}*.cpp tests/native/cpu/*.cpp)
  shift 2
  shared=$temporary/$(cksum <<<"$compiler $*" | tr ' ' -)
  local command=("$compiler" "${flags[@]}" -DRNNFAST_TEST_ISAS "$@")
  [ -d "$shared" ] || grep -L 'parallel\.h"' "${sources[@]}" | compile "$shared" "${command[@]}"
  grep -l 'parallel\.h"' "${sources[@]}" | compile "$temporary/$name" "${command[@]}" "$threads"
  "$compiler" "$@" -pthread {"$shared","$temporary/$name"}/*.o -o "$temporary/$name/test" -lgomp
  printf '%s: compiled in %d s\n' "$name" $((SECONDS - start))
  # A waiting thread must give up its core, because there may be fewer cores than threads.
  set -- "$name" env OMP_WAIT_POLICY=passive TSAN_OPTIONS=halt_on_error=1 \
    "${emulator[@]}" "$temporary/$name/test"
  if [ "$threads" = "$openmp" ]; then run_test "$@"; else run_later "$@"; fi
}

part_cpu() {
  check threads "$std_threads" -fsanitize=thread
  check memory-openmp "$openmp" "${gcc_memory[@]}"
  check memory-one-thread "$one_thread" "${gcc_memory[@]}"
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
  check clang-openmp "$openmp" "${sanitizers[@]}"
  check clang-one-thread "$one_thread" "${sanitizers[@]}"
}

part_aarch64() {
  local qemu
  if ! compiler=$(first_of aarch64-linux-gnu-g++); then
    echo 'aarch64: skipped, there is no aarch64-linux-gnu-g++'
  elif ! qemu=$(first_of qemu-aarch64 qemu-aarch64-static); then
    echo 'aarch64: skipped, there is no qemu-aarch64'
  else
    emulator=("$qemu" -L /usr/aarch64-linux-gnu)
    check aarch64 "$one_thread"
  fi
}

# Each process runs the threads of a GPU on one thread of the system. The cases are divided into
# `parts` parts, of which those in the list `some` are run.
check_cuda() {
  local name=$1 parts=$2 some=$3 part start=$SECONDS
  shift 3
  printf '%s\n' csrc/cuda/{,*/}*.cu tests/native/test_cuda{,_leaky}.cpp |
    compile "$temporary/$name" "$compiler" -x c++ "${flags[@]}" -I tests/native \
      -Wno-unknown-pragmas "$@"
  "$compiler" "$@" "$temporary/$name"/*.o -o "$temporary/$name/test"
  printf '%s: compiled in %d s\n' "$name" $((SECONDS - start))
  for part in $some; do
    run_later "$name-$part" \
      env TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_stack_use_after_return=0 \
      "$temporary/$name/test" "$part" "$part/$parts"
  done
}

part_cuda() {
  check_cuda cuda 8 '1 2 3 4 5 6 7 8'
  # 61 parts, so that every kernel meets every size, forward and backward. ThreadSanitizer takes
  # minutes and gigabytes for such a part, so it gets two parts of 488. An odd part has the forward
  # pass, and an even part has the backward pass.
  check_cuda cuda-memory 61 '1 12 23 34' "${gcc_memory[@]}"
  check_cuda cuda-threads 488 '1 246' -fsanitize=thread
}

[ $# -gt 0 ] || set -- cpu clang aarch64 cuda
for part; do
  compiler=${CXX:-c++} emulator=()
  "part_$part"
done
xargs -P "$(nproc)" -d '\n' -I {} bash -c 'run_test {}' <"$temporary/later"
