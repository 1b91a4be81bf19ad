"""Look at the machine code of the CUDA kernels that keep W_hh on the chip, without a GPU.

    python tests/native/disassemble.py [SOURCE.cu or COMPILED.cubin ...] [--jobs N]

Compiles csrc/cuda/instances/*.cu, or the given sources, for sm_90 with nvcc, disassembles them with
nvdisasm and finds the loop over the time steps in each kernel. A step is a chain of latencies, so
what counts is how many instructions a warp executes in it. Prints for each loop, of one time step:
the instructions on the longest way through it, and of those the ones beside matrix instructions,
multiply-adds and loads of W from shared memory; the jumps; and of the whole loop: the bytes of
code, the fences (MEMBAR, ERRBAR, CCTL) and the accesses to local memory.

Fails if a loop of a cluster kernel holds a fence, or if a loop is over its budget of instructions,
bytes or accesses to local memory. csrc/cuda/README.md gives the reasons for the budgets.

nvcc is NVCC or the one on the PATH. nvdisasm is NVDISASM, the one on the PATH, or the one of the
package nvidia-cuda-nvdisasm.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The template argument Mode of the kernels.
MODES = ("", " packed", " resets", " leaky")
# Instructions of a warp and step beside products, for each mode: of the kernels for one row.
ONE_ROW = {
    "Block": (80, 125, 145, 240),
    "Cluster": (200, 215, 235, 345),
    "Numbered": (200, 215, 235, 345),
    "Counted": (200, 215, 235, 345),
}
# Instructions by which two values of tanh to float precision exceed two of bfloat16.
EXACT_TANH = 26
CODE_BYTES = (16 << 10, 16 << 10, 17 << 10, 22 << 10)  # for each mode
PRODUCTS = ("HMMA", "FFMA")
FENCES = ("MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL")
LOCAL = ("LDL", "STL")
# Accesses to local memory that the loop of a backward pass may have, for each mode.
MOST_LOCAL = {"Block": (0, 0, 1, 0), "Cluster": (0, 0, 4, 10), "Counted": (0, 2, 7, 9)}


def find_nvdisasm():
    named = os.environ.get("NVDISASM") or shutil.which("nvdisasm")
    packaged = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin/nvdisasm"))
    if not named and not packaged:
        sys.exit(
            "disassemble.py: there is no nvdisasm in NVDISASM or on the PATH; "
            "install nvidia-cuda-nvdisasm"
        )
    return named or str(packaged[-1])


def disassemble(source, nvcc, nvdisasm, folder):
    """The text of nvdisasm for one source file, or for the cubin that nvcc has made of one."""
    cubin = source
    if source.suffix != ".cubin":
        cubin = Path(folder, source.stem + ".cubin")
        flags = ["-std=c++17", "-O3", "-arch=sm_90", "-I", ROOT / "csrc"]
        subprocess.run([nvcc, *flags, "-cubin", source, "-o", cubin], check=True)
    return subprocess.run(
        [nvdisasm, "-c", cubin], check=True, capture_output=True, text=True
    ).stdout


def functions(text):
    """Yields (mangled name, instructions, {label: index of the instruction after it})."""
    name, code, labels = None, [], {}
    for line in text.splitlines():
        section = re.match(r"\s*\.section\s+\.text\.(\S+?),", line)
        label = re.match(r"\s*(\.L_x_\d+):", line)
        instruction = re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;", line)
        if section:
            if name:
                yield name, code, labels
            name, code, labels = section[1], [], {}
        elif label:
            labels[label[1]] = len(code)
        elif instruction:
            code.append(instruction[1])
    if name:
        yield name, code, labels


def opcode(instruction):
    """Without predicate and suffixes."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def target(instruction, labels):
    """Index of the instruction to which this one jumps, or None."""
    label = re.search(r"`\((\.L_x_\d+)\)", instruction)
    return labels.get(label[1]) if label and opcode(instruction) == "BRA" else None


def blocks(code, labels):
    """(Beginnings of the basic blocks in order, {block: blocks that may follow})."""
    ends = {n for n, i in enumerate(code) if opcode(i) in ("BRA", "EXIT", "RET")}
    targets = {n: target(code[n], labels) for n in ends}
    begins = sorted(
        {0, *(t for t in targets.values() if t is not None), *(n + 1 for n in ends)} - {len(code)}
    )
    following = {}
    for begin, end in zip(begins, [*begins[1:], len(code)], strict=True):
        last = code[end - 1]
        after = [] if targets.get(end - 1) is None else [targets[end - 1]]
        if (end - 1 not in ends or last.startswith("@")) and end < len(code):
            after.append(end)
        following[begin] = after
    return begins, following


def dominators(begins, following):
    """{block: all blocks that every way to it passes}."""
    before = {b: [] for b in begins}
    for b, after in following.items():
        for a in after:
            before[a].append(b)
    found = {b: {0} if b == 0 else set(begins) for b in begins}
    changed = True
    while changed:
        changed = False
        for b in begins[1:]:
            known = [found[p] for p in before[b]]
            new = {b} | (set.intersection(*known) if known else set())
            changed |= new != found[b]
            found[b] = new
    return found, before


class Loop:
    """The loop of a function with the most products."""

    def __init__(self, code, labels):
        begins, following = blocks(code, labels)
        ends = dict(zip(begins, [*begins[1:], len(code)], strict=True))
        found, before = dominators(begins, following)
        loops = {}
        for tail, after in following.items():
            for head in after:
                if head in found[tail]:  # a jump back
                    body, open_ = {head}, [tail]
                    while open_:
                        block = open_.pop()
                        if block not in body:
                            body.add(block)
                            open_ += before[block]
                    loops.setdefault(head, set()).update(body)
        inside = set().union(*loops.values()) if loops else set()
        self.code = {b: [opcode(i) for i in code[b : ends[b]]] for b in inside}
        self.head = max(
            loops, key=lambda h: (self.products(loops[h]), -len(loops[h])), default=None
        )
        self.body = loops.get(self.head, set())
        self.following = {
            b: [a for a in following[b] if a in self.body and a not in found[b]] for b in self.body
        }

    def products(self, body):
        return sum(op in PRODUCTS for b in body for op in self.code[b])

    def count(self, names):
        return sum(op in names for b in self.body for op in self.code[b])

    def bytes(self):
        return 16 * sum(len(self.code[b]) for b in self.body)

    def longest(self):
        """Counts the opcodes on the longest way through the loop, inner loops passed once."""
        best = {}

        def way(block):
            if block not in best:
                own = Counter(self.code[block])
                best[block] = Counter()  # should the graph be no tree of loops
                rest = [way(b) for b in self.following[block]]
                best[block] = own + max(rest, key=lambda c: c.total(), default=Counter())
            return best[block]

        return way(self.head)


def describe(name):
    """(Exchange, product with its numbers, backward, mode) of a mangled name, or None."""
    readable = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout
    readable = readable.replace("rnnfast::cuda::", "")
    match = re.search(r"recur<(\w+)<([^>]*)>, (\w+), (\w+), \(Mode\)(\d)>", readable)
    if not match:
        return None
    product, numbers, exchange, backward, mode = match.groups()
    return exchange, product, numbers.split(", "), backward == "true", int(mode)


def sizes_of(exchange, product, numbers):
    """Steps of the loop, rows of a group, and loads of W from shared memory, as in product.h."""
    sizes = [int(n) for n in numbers[1:]]
    if product == "MatrixProduct":
        tiles, blocks, sharing, eights, cells, shared = sizes
        # Counted is for more rows than one, for which there is Numbered.
        one = eights == cells == 1 and exchange != "Counted"
        steps = 2 if eights < 4 and tiles * blocks * cells < 64 else 1
        steps = 4 if sharing == eights == cells == 1 else steps
        return steps, 1 if one else 8 * eights, 2 * tiles * shared
    _, units, words, rows, shared = sizes
    steps = next((n for n, most in ((4, 16), (2, 64)) if units * words * rows <= most), 1)
    return steps, rows, units * shared


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", type=Path, nargs="*")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="files at a time")
    arguments = parser.parse_args()
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    if nvcc is None:
        sys.exit("disassemble.py: there is no nvcc in NVCC or on the PATH")
    nvdisasm = find_nvdisasm()
    sources = arguments.sources or sorted(ROOT.glob("csrc/cuda/instances/*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        texts = list(pool.map(lambda s: disassemble(s, nvcc, nvdisasm, folder), sources))

    columns = ("instructions", "beside", "jumps", "bytes", "fences", "local")
    print(f"{'exchange, product, direction':70}" + "".join(f"{c:>13}" for c in columns))
    kernels, wrong = 0, []
    for text in texts:
        for name, code, labels in functions(text):
            what = describe(name)
            if what is None:
                continue
            kernels += 1
            exchange, product, numbers, backward, mode = what
            steps, rows, loads = sizes_of(exchange, product, numbers)
            is_leaky = MODES[mode] == " leaky"
            steps = (steps + 1) // 2 if is_leaky else steps  # as in recur.h
            loop = Loop(code, labels)
            way = loop.longest()
            total = way.total() / steps
            beside = total - sum(way[p] for p in PRODUCTS) / steps - loads
            title = (
                f"{exchange} {product}<{', '.join(numbers)}> "
                f"{'backward' if backward else 'forward'}{MODES[mode]}"
            )
            fences, local = loop.count(FENCES), loop.count(LOCAL)
            values = (total, beside, way["BRA"] / steps, loop.bytes(), fences, local)
            print(f"{title:70}" + "".join(f"{v:13.0f}" for v in values))
            budget = ONE_ROW[exchange][mode]
            if numbers[0] in ("Tf32", "Float16") and not (backward or is_leaky):
                budget += EXACT_TANH
            if rows == 1 and beside > budget:
                wrong.append(f"{title}: {beside:.0f} instructions a step, at most {budget}")
            if loop.bytes() > CODE_BYTES[mode]:
                wrong.append(f"{title}: {loop.bytes()} bytes of code, at most {CODE_BYTES[mode]}")
            if exchange == "Cluster" and fences:
                wrong.append(f"{title}: {fences} fences in the loop")
            most = MOST_LOCAL[exchange][mode] if backward and exchange in MOST_LOCAL else 0
            if local > most:
                wrong.append(f"{title}: {local} accesses to local memory, at most {most}")
    if not kernels:
        wrong.append("no kernel was found")
    for line in wrong:
        print(f"FAILED: {line}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
