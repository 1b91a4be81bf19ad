"""The files of a saved estimator: settings, feature tables and weights in one folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._common.errors import UserError
from .._common.files import corrupted, read_json, to_json, write_atomic
from .._common.storage import CONFIG, VOCAB, WEIGHTS, Folder, read_tensors
from .._version import __version__
from .network import SequenceNetwork

FORMAT = 1


def new_folder(path: str | Path, overwrite: bool) -> Folder:
    """Return the folder that `write_estimator` writes to.

    Raises:
        UserError: The folder holds a model and `overwrite` is false, or it holds other files.
    """
    if (Path(path) / WEIGHTS).exists() and not overwrite:
        raise UserError(f"'{path}' holds a model: give another folder, or ask to overwrite it")
    return Folder(path, overwrite)


def write_estimator(
    folder: Folder,
    settings: dict,
    tables: list[list[str]],
    tensors: dict[str, torch.Tensor],
) -> None:
    """Write the files of an estimator, each at once, and close the folder.

    Args:
        folder: The folder, from `new_folder`.
        settings: The content of config.json, without the versions.
        tables: The values of each feature, or [] if the sequences are numbers.
        tensors: The weights by name.
    """
    versions = {"format": FORMAT, "rnnfast": __version__, "torch": torch.__version__}
    with contextlib.closing(folder):
        write_atomic(folder.path / VOCAB, to_json({"tables": tables}))
        write_atomic(folder.path / CONFIG, to_json({**versions, **settings}))
        folder.write_weights(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        )


def read_settings(path: Path) -> dict:
    """Return the content of config.json. Raise UserError if it is not that of an estimator."""
    if not path.is_dir():
        raise UserError(f"there is no model folder {path}: give a folder that save wrote")
    settings = read_json(path / CONFIG)
    if not isinstance(settings, dict) or "estimator" not in settings:
        raise UserError(f"{path} holds no classifier, regressor or tagger: give another folder")
    with reading(path / CONFIG):
        if settings["format"] != FORMAT:
            raise UserError(f"its format is {settings['format']}, and this version reads {FORMAT}")
    return settings


def read_tables(path: Path) -> list[list[str]]:
    """Return the values of each feature from vocab.json. Raise UserError if it is corrupted."""
    vocab = read_json(path / VOCAB)
    with reading(path / VOCAB):
        tables = vocab["tables"]
        if not all(isinstance(value, str) for table in tables for value in [table[0], *table]):
            raise UserError("tables must be lists of strings")
    return tables


def read_networks(
    path: Path, build: Callable[[], SequenceNetwork], count: int, device: str
) -> list[SequenceNetwork]:
    """Return the networks of an ensemble with the weights that were saved, on a device.

    Args:
        path: The folder of the estimator.
        build: Makes one network of the ensemble, with any weights.
        count: The number of networks.
        device: The device for the networks, as torch names it.

    Raises:
        UserError: The sizes in config.json are impossible, or the file of weights is missing,
            corrupted or has other sizes.
    """
    try:
        # A network on the device "meta" has shapes and no memory. A corrupted config.json may
        # name any size, so the shapes are compared with those in the file of weights first.
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in build().state_dict().items()}
        wanted = {f"{k}.{name}": shape for k in range(count) for name, shape in shapes.items()}
        tensors, _ = read_tensors(path / WEIGHTS, wanted)
    except RuntimeError as error:
        raise UserError(f"{path / CONFIG}: no model can have these sizes") from error
    networks = []
    for k in range(count):
        # To build a network draws random numbers. The caller's random state must not change.
        with torch.random.fork_rng(devices=[]):
            network = build()
        network.load_state_dict({name: tensors[f"{k}.{name}"] for name in shapes})
        networks.append(network.to(device).eval())
    return networks


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn an error in a `with` block into a UserError that says that this file is corrupted."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(corrupted(file, error)) from error


def params_to_json(params: dict) -> dict:
    """Return the settings of an estimator as JSON holds them; a dict becomes a list of pairs."""
    return {
        name: [[plain(key), plain(item)] for key, item in value.items()]
        if isinstance(value, dict)
        else plain(value)
        for name, value in params.items()
    }


def params_from_json(params: dict) -> dict:
    """Return the settings of an estimator from what `params_to_json` made of them.

    Estimators of version 0.1 called `cell` `nonlinearity`.
    """
    params = {**params, "features": tuple(params["features"])}
    if "nonlinearity" in params:
        params["cell"] = params.pop("nonlinearity")
    if isinstance(params.get("class_weight"), list):
        params["class_weight"] = dict(params["class_weight"])
    return params


def plain(value: Any) -> Any:
    """Return a NumPy scalar as a Python number, and a path or a torch device as a string."""
    if isinstance(value, (Path, torch.device)):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value
