"""An extension of Griffe that reads the docstrings of rnnfast as they are written.

A Sphinx role such as :func:`rnnfast.functional.rnn` becomes a link to that function. A name that
the site does not document stays code. The section "Example:" is what Griffe calls "Examples:".
"""

import re

from griffe import Extension

ROLE = re.compile(r":(?:py:)?\w+:`~?([\w.]+)`")
EXAMPLE = re.compile(r"^( *)Example:$", re.M)


class Docstrings(Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring is not None:
            module = obj.module.path
            text = EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = ROLE.sub(lambda m: link(m[1], module), text)


def link(name, module):
    """Return the link to `name`, which is in `module` if it is not a full path."""
    target = name if name.startswith("rnnfast.") else f"{module}.{name}"
    return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'
