"""DataTables becomes a script that can stand inside a page."""

from __future__ import annotations

import re

import pytest

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.reporting import table_library


def test_the_installed_library_can_stand_in_a_script_element():
    script = table_library.script()
    assert script.startswith("const DataTable = (() => {")
    assert not re.search(r"<!--|</?script", script, re.IGNORECASE)
    assert not re.search(r"\bexport\s*\{", script)
    assert "© SpryMedia Ltd" in script  # whose licence asks that its notice goes along
    assert "Released under the MIT license" in script


def test_a_module_becomes_a_function_that_returns_its_default():
    found = table_library.inline('var a="<script>",b=/<!--x/;export{a as table,b as default};\n/* licence */')
    assert 'var a="\\x3cscript>",b=/\\x3c!--x/;' in found
    assert found.rstrip().endswith("return b; })();")
    assert "/* licence */" in found


@pytest.mark.parametrize("module", ["", "var a=1;", "var a=1;export{a as table}"])
def test_another_layout_is_an_error_that_says_what_to_install(module):
    with pytest.raises(LpmbenchError, match="itables"):
        table_library.inline(module)
