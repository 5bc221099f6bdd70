"""The layers of docs/ARCHITECTURE.md: a module imports only from lower ones, and a dry run needs no torch."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gradlab"
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
LAYER = {
    module: int(number) for number, names in re.findall(r"^    (\d+)  (.+)$", PAGE, re.M) for module in names.split()
}
TORCH_FREE = re.findall(r"^    without torch: (.+)$", PAGE, re.M)[0].split()


def part(path: Path) -> str:
    """The module or package directly below gradlab that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every gradlab module or package that the tree imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "gradlab":
            yield from (name.name for name in node.names if name.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradlab."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("gradlab."))


def test_every_module_has_a_layer():
    found = {part(path) for path in SOURCE.rglob("*.py")} - {"__init__", "__main__"}
    assert found == set(LAYER)


def test_imports_go_down():
    wrong = [
        f"{path.relative_to(SOURCE)} (layer {LAYER[part(path)]}) imports {module} (layer {LAYER[module]})"
        for path in sorted(SOURCE.rglob("*.py"))
        if part(path) in LAYER
        for module in imported(ast.parse(path.read_text(encoding="utf-8")))
        if module in LAYER and module != part(path) and LAYER[module] >= LAYER[part(path)]
    ]
    assert not wrong, "\n".join(wrong)


def test_relative_imports_are_not_used():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_torch_free_modules_import_no_torch():
    code = f"import sys, {', '.join(f'gradlab.{name}' for name in TORCH_FREE)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
