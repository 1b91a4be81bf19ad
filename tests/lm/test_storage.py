"""Files and folders: no model is ever lost, and one run at a time writes."""

import errno
import os
import subprocess
import sys

import pytest
from lm_helpers import (
    CORPUS,
    PERIODIC,
    same_weights,
    small_config,
    small_model,
)

from rnnfast import lm
from rnnfast._common.files import check_writable, write_atomic
from rnnfast._common.storage import RUN_FILES
from rnnfast.lm import storage
from rnnfast.lm.training.runs import prepare, resume


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(lm.UserError, match="No space left"):
                write_atomic(path, b"new")
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_one(tmp_path):
    for name in ("there", "new"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        file, link = tmp_path / "folder" / name, tmp_path / f"to-{name}"
        link.symlink_to(f"folder/{name}")
        if name == "there":
            file.write_bytes(b"old")
        check_writable(link, "--json")
        write_atomic(link, b"new")
        assert link.is_symlink() and not file.is_symlink() and file.read_bytes() == b"new"
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["new", "there"]
    (tmp_path / "astray").symlink_to("nowhere/file")
    with pytest.raises(lm.UserError, match=r"cannot write .*astray: give --json a file"):
        check_writable(tmp_path / "astray", "--json")


def test_what_is_no_file_is_written_to(tmp_path):
    """A pipe with a name, a link to it, and what the shell calls /dev/fd/N, be it a file."""
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to("fifo")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    ends = os.pipe()
    for path, end in ((fifo, reader), (link, reader), (f"/dev/fd/{ends[1]}", ends[0])):
        check_writable(path, "--json")
        write_atomic(path, (part for part in (b"some ", b"text")))
        assert os.read(end, 99) == b"some text"
    assert fifo.is_fifo() and link.is_symlink()
    with open(tmp_path / "file", "wb", buffering=0) as file:
        file.write(b"before, ")
        write_atomic(f"/dev/fd/{file.fileno()}", b"some text")
        file.write(b", after")
    assert (tmp_path / "file").read_bytes() == b"before, some text, after"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "file", "link"]
    for end in (reader, *ends):
        os.close(end)
    with pytest.raises(lm.UserError, match=r"cannot write .*: give --json a file"):
        check_writable(tmp_path, "--json")


def test_an_old_model_stands_until_the_new_one_is_there(tmp_path):
    model, _ = lm.train(small_config(), CORPUS, tmp_path / "model")
    trainer = prepare(small_config(nhid=8), CORPUS, storage.RunFolder(tmp_path / "model", True))
    validations = []

    def still_there(step):
        if not validations:
            assert same_weights(model, lm.load(tmp_path / "model"))

    trainer.run(still_there, validations.append)
    assert lm.load(tmp_path / "model").rnn.hidden_size == 8
    assert {p.name for p in (tmp_path / "model").iterdir()} == RUN_FILES
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("replaced", [False, True])
def test_one_run_at_a_time_writes_to_a_folder(tmp_path, replaced):
    """Whether another asks for it anew, to replace it or to go on with it; another process too."""
    path = tmp_path / "model"
    if replaced:
        lm.save(small_model(), small_config(), path)
    trainer = prepare(small_config(epochs=2), CORPUS, storage.RunFolder(path, replaced))
    refused = pytest.raises(lm.UserError, match=r"another run is writing to .*model")

    def meanwhile(_):
        before = {file: file.read_bytes() for file in path.iterdir()}
        for overwrite in (False, True):
            with refused:
                storage.RunFolder(path, overwrite)
        if storage.CHECKPOINT in os.listdir(path):
            with refused:
                resume(path, {}, CORPUS)
            argv = [sys.executable, "-m", "rnnfast", "train", "--resume", str(path)]
            other = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert other.returncode == 2 and "another run is writing" in other.stderr
        assert before == {file: file.read_bytes() for file in path.iterdir()}

    meanwhile(None)
    trainer.run(on_validation=meanwhile)
    with pytest.raises(lm.UserError, match="is finished"):  # nobody writes there any more
        resume(path, {}, CORPUS)
    resume(path, {"epochs": 3}, CORPUS).run()


def test_a_folder_is_free_when_nobody_writes(tmp_path):
    path = tmp_path / "model"
    first = storage.RunFolder(path)
    del first
    with pytest.raises(lm.UserError, match="empty") as kept:  # and with it the frames
        prepare(small_config(), lm.Corpus(PERIODIC, ""), storage.RunFolder(path))
    for overwrite in (False, True):
        lm.save(small_model(), small_config(), path, overwrite)
    (path / "notes").touch()
    with pytest.raises(lm.UserError, match="not a model's") as other:
        storage.RunFolder(path, True)
    (path / "notes").unlink()
    lm.save(small_model(), small_config(), path, overwrite=True)
    assert [kept.type, other.type] == 2 * [lm.UserError]


def test_a_folder_without_locks_is_written_to(tmp_path, monkeypatch):
    def unknown(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("rnnfast._common.storage.fcntl.flock", unknown)
    for overwrite in (False, True):
        lm.save(small_model(), small_config(), tmp_path / "model", overwrite)


def test_a_model_is_replaced_through_a_link_and_keeps_its_mode(tmp_path):
    (tmp_path / "link").symlink_to("model")
    lm.save(small_model(), small_config(), tmp_path / "link")  # makes what it points to
    (tmp_path / "model").chmod(0o751)
    for path in ("link", "model"):
        before, new = lm.load(tmp_path / "model"), small_model(seed=1)
        with pytest.raises(lm.UserError, match=f"{path} holds a model"):
            lm.save(new, small_config(), tmp_path / path)
        assert same_weights(before, lm.load(tmp_path / "model"))
        lm.save(new, small_config(), tmp_path / path, overwrite=True)
        assert same_weights(new, lm.load(tmp_path / path))
        assert (tmp_path / "link").is_symlink() and not (tmp_path / "model").is_symlink()
        assert (tmp_path / "model").stat().st_mode & 0o777 == 0o751
        assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "model"]


def test_an_old_model_is_put_back_if_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    old, rename = small_model(), os.rename
    lm.save(old, small_config(), tmp_path / "model")

    def failing(source, target):
        if str(source).endswith(".new"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    new = small_model(seed=1)
    with pytest.raises(lm.UserError, match=r"cannot write .*model: Input/output error; ") as error:
        lm.save(new, small_config(), tmp_path / "model", overwrite=True)
    assert same_weights(old, lm.load(tmp_path / "model"))
    assert same_weights(new, lm.load(str(error.value).rpartition(" is in ")[2]))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_model_is_not_the_model(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(lm.UserError, match=f"{name} is a part of a model: give the folder, "):
        lm.load(tmp_path / name)
