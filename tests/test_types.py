"""The public interface has types, and the stub of the native module describes that module."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import rnnfast
from rnnfast import _C

PUBLIC = ["rnnfast", *(f"rnnfast.{name}" for name in ("nn", "functional", "reference", "lm"))]
PUBLIC += [f"rnnfast.{name}" for name in ("tasks", "embeddings", "diagnostics", "bench")]


def public_functions(module):
    """Yield the names and the functions of `__all__`, with the methods of its classes."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for method, function in vars(value).items():
                function = getattr(function, "__func__", function)  # of a class method
                is_public = method == "__init__" or not method.startswith("_")
                ours = getattr(function, "__module__", "").startswith("rnnfast")
                if inspect.isfunction(function) and is_public and ours:
                    yield f"{name}.{method}", function


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_function_has_types(module):
    found = dict(public_functions(importlib.import_module(module)))
    assert found
    for name, function in found.items():
        signature = inspect.signature(function)
        for parameter in signature.parameters.values():
            typed = parameter.annotation is not inspect.Parameter.empty
            assert typed or parameter.name in ("self", "cls"), f"{name}: {parameter}"
        typed = signature.return_annotation is not inspect.Signature.empty
        assert typed or name.endswith("__init__"), f"{name} has no type of its result"


STUB = ast.parse((Path(rnnfast.__file__).parent / "_C.pyi").read_text())
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
# How pybind11 names the types of arguments, as patterns, and how this test names them.
SPELLINGS = {
    r"typing\.Supports(Int|Float) \| typing\.SupportsIndex": lambda found: found[1].lower(),
    r"(?:typing\.)?Optional\[(.*)\]": r"\1 | None",
    r"(?:collections\.abc\.)?Sequence\b": "list",
    r"\bTensor( \| None)?": "object",
}


def kind(annotation):
    """Return a type without what pybind11 does not know of it: the elements of lists, tensors."""
    text = ast.unparse(annotation)
    for pattern, name in SPELLINGS.items():
        text = re.sub(pattern, name, text)
    return re.sub(r"\[.*\]", "", text)


def kinds(function):
    """Return the kinds of the arguments and of the result of a function definition."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    given = [kind(one.annotation) for one in arguments if one.arg != "self"]
    return given, kind(function.returns)


def in_module(function):
    """Return the definition that pybind11 has written into the docstring of a function."""
    return ast.parse(f"def {function.__doc__.splitlines()[0]}: ...").body[0]


def test_the_stub_has_the_names_of_the_module():
    constants = {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign)}
    names = constants | FUNCTIONS.keys() | CLASSES.keys()
    if not _C.cuda:
        names = {name for name in names if not name.lower().startswith("cuda") or name == "cuda"}
    assert names == {name for name in dir(_C) if not name.startswith("_")}
    for node in STUB.body:
        if isinstance(node, ast.AnnAssign):
            assert type(getattr(_C, node.target.id)).__name__ == ast.unparse(node.annotation)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stub_has_the_signature_of_a_function(name):
    if name.startswith("cuda_") and not _C.cuda:
        pytest.skip("this build has no CUDA kernels")
    assert kinds(FUNCTIONS[name]) == kinds(in_module(getattr(_C, name)))


def test_the_stub_has_the_methods_of_the_sampler():
    methods = {node.name: node for node in CLASSES["Sampler"].body}
    public = {name for name in dir(_C.Sampler) if not name.startswith("_")}
    assert methods.keys() == public | {"__init__"}
    for name, method in methods.items():
        assert kinds(method) == kinds(in_module(getattr(_C.Sampler, name)))
