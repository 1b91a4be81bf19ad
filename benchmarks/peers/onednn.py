"""oneDNN, through onednn.cpp."""

import ctypes
import os
import re
import sys
from pathlib import Path

import native
import numpy as np
from cases import one_hot_vectors

from .base import NotRunError, Peer

# The places of oneDNN's gates among those of torch. Each of these orders is its own inverse.
GATES = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 1, 2, 3]}


class OneDNN(Peer):
    """`vanilla_rnn`, `lbr_gru` or `lstm` of one installation of oneDNN, through onednn.cpp."""

    def __init__(self, root: str):
        headers, library = Path(root, "include"), _onednn_library(root)
        if library is None:
            raise NotRunError("not installed: pip install 'rnnfast[peers]'")
        self.version = onednn_version(root)
        self.lib = lib = native.load(
            "onednn.cpp",
            f"-I{headers}",
            str(library),
            f"-Wl,-rpath,{library.parent}",
            key=self.version,
        )
        lib.rnn_error.restype = ctypes.c_char_p
        lib.rnn_new.restype = ctypes.c_void_p
        lib.rnn_new.argtypes = [ctypes.c_char_p] + [ctypes.c_int] * 7 + [ctypes.c_void_p] * 5
        lib.rnn_run.argtypes = lib.rnn_delete.argtypes = [ctypes.c_void_p]
        lib.rnn_read.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    def call(self, case, data, mode):
        if case.lengths:
            raise NotRunError("no lengths")
        return _OneDNNCall(self.lib, case, data, mode)

    def arrays(self, results):
        return results.read()


class _OneDNNCall:
    def __init__(self, lib, case, data, mode):
        self.lib, self.case, self.mode = lib, case, mode
        L, D = case.layers, case.directions
        if L > 1 and case.I != D * case.H:
            raise NotRunError("layers of different sizes")
        w_ih, w_hh, b_ih, b_hh = (self._by_gate(np.stack(data.weights[k::4])) for k in range(4))
        bias = b_ih + b_hh
        if case.cell == "gru":
            bias = np.concatenate([bias[:, :2], b_ih[:, 2:], b_hh[:, 2:]], axis=1)
        given = [one_hot_vectors(case, data.x), *(np.moveaxis(w, 3, 1) for w in (w_ih, w_hh))]
        given += [bias, data.dy]
        given = [np.ascontiguousarray(array) for array in given]
        addresses = [array.ctypes.data for array in given]
        if mode == "forward":
            addresses[-1] = None
        sizes = case.T, case.B, case.I, case.H, L, D
        bf16 = case.dtype == "bfloat16"
        self.handle = lib.rnn_new(case.cell.encode(), *sizes, bf16, *addresses)
        if not self.handle:
            raise NotRunError(lib.rnn_error().decode())

    def _by_gate(self, weights):
        """Return weights [L * D, G * H, ...] as [L * D, G, H, ...] with oneDNN's order of gates."""
        split = weights.reshape(len(weights), self.case.gates, self.case.H, *weights.shape[2:])
        return split[:, GATES[self.case.cell]]

    def __call__(self):
        if self.lib.rnn_run(self.handle):
            raise RuntimeError(self.lib.rnn_error().decode())
        return self

    def read(self):
        case = self.case
        T, B, I, H, G = case.T, case.B, case.I, case.H, case.gates  # noqa: E741
        L, D = case.layers, case.directions

        def get(name, *shape):
            array = np.empty(shape, np.float32)
            if self.lib.rnn_read(self.handle, name.encode(), array.ctypes.data):
                raise RuntimeError(self.lib.rnn_error().decode())
            return array

        if self.mode == "forward":
            return [get("y", T, B, D * H), *(get(name, L * D, B, H) for name in case.states)]
        dw_ih, dw_hh = get("dw_layer", L * D, I, G, H), get("dw_iter", L * D, H, G, H)
        db = get("dbias", L * D, 4 if case.cell == "gru" else G, H)
        db_ih, db_hh = (db[:, :3], db[:, [0, 1, 3]]) if case.cell == "gru" else (db, db)
        kinds = (np.moveaxis(dw_ih, 1, 3), np.moveaxis(dw_hh, 1, 3), db_ih, db_hh)
        kinds = [kind[:, GATES[case.cell]] for kind in kinds]
        results = [] if case.one_hot else [get("dx", T, B, I)]
        for k in range(L * D):
            results += [kind[k].reshape(G * H, *kind.shape[3:]) for kind in kinds]
        return results

    def __del__(self):
        if getattr(self, "handle", None):
            self.lib.rnn_delete(self.handle)


def onednn_roots() -> list[str]:
    """Return the installations of oneDNN: folders with include/oneapi/dnnl/ and a libdnnl.so.

    The environment variable ONEDNN_ROOTS lists folders, separated by colons. Without it the folders
    are those where pip and the packages of the system install oneDNN.
    """
    named = os.environ.get("ONEDNN_ROOTS")
    roots = named.split(os.pathsep) if named else [sys.prefix, "/usr"]
    return [root for root in dict.fromkeys(roots) if _onednn_library(root)]


def _onednn_library(root: str) -> Path | None:
    if not Path(root, "include", "oneapi", "dnnl", "dnnl.hpp").exists():
        return None
    return next(iter(sorted(Path(root).glob("lib*/**/libdnnl.so"))), None)


def onednn_version(root: str) -> str:
    header = Path(root, "include", "oneapi", "dnnl", "dnnl_version.h").read_text()
    numbers = (re.search(rf"DNNL_VERSION_{n}\s+(\d+)", header) for n in ("MAJOR", "MINOR", "PATCH"))
    return ".".join(number[1] for number in numbers)


def onednn_environment(root: str) -> dict[str, str]:
    """Return the environment in which oneDNN finds the libraries that it needs itself."""
    folder = _onednn_library(root).parent
    environment = {"LD_LIBRARY_PATH": str(folder)}
    if (driver := folder / "libintelocl.so").exists():
        environment["OCL_ICD_FILENAMES"] = str(driver)
    return environment
