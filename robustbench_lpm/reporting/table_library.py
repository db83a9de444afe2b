"""DataTables, out of the installed package itables, as a script that can stand inside a page.

itables carries one bundle with jQuery and DataTables (both MIT) as a JavaScript module. A page of one file cannot
import from it, so the module becomes a function that is called once and returns the class.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from robustbench_lpm.errors import LpmbenchError

EXPORT = re.compile(r"export\s*\{([^{}]*)\}\s*;?")
# What would end, or nest, the script element that holds the bundle; all of it stands in strings and patterns there.
UNSAFE = re.compile(r"<(?=!--|/?script)", re.IGNORECASE)


@cache
def script() -> str:
    """JavaScript that defines `DataTable`, licence notices included; about 620 kB.

    Raises LpmbenchError where the installed itables is laid out otherwise.
    """
    bundle = files("itables").joinpath("html", "dt_bundle.js")
    source = bundle.read_text(encoding="utf-8") if bundle.is_file() else ""
    return inline(source)


def inline(module: str) -> str:
    """A JavaScript module as a script that defines `DataTable`, its default export."""
    exports = EXPORT.findall(module)
    names = [re.fullmatch(r"\s*([\w$]+)\s+as\s+default\s*", part) for part in exports[0].split(",")] if exports else []
    default = [name.group(1) for name in names if name]
    if len(exports) != 1 or len(default) != 1:
        raise LpmbenchError("The installed itables holds no DataTables that the page can use; install itables 2.9.")
    body = UNSAFE.sub(r"\\x3c", EXPORT.sub("", module))
    return f'const DataTable = (() => {{ "use strict";\n{body}\nreturn {default[0]}; }})();\n'
