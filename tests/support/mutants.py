"""`secagg.site` with some of its refusals taken out, compiled into a module of its own."""

import ast
import types
from typing import Any

from clinimeta.common.secagg import site

with open(site.__file__, encoding="utf-8") as file:
    SOURCE = file.read()


def _code_of(node: ast.AST) -> str | None:
    """The code, if the node is `raise Refused("code", ...)`."""
    match node:
        case ast.Raise(exc=ast.Call(func=ast.Name("Refused"), args=[ast.Constant(code), *_])):
            return str(code)
    return None


CODES = sorted(code for node in ast.walk(ast.parse(SOURCE)) if (code := _code_of(node)))
"""The code of every refusal in the source of `secagg.site`; each occurs once."""


class _Shorten(ast.NodeTransformer):
    """Drops one operand of one `and`, `or` or `max(...)`: the `target`-th of all in the source."""

    def __init__(self, target: int) -> None:
        self.target, self.seen, self.what = target, 0, ""

    def _shortened(self, node: ast.AST, operands: list[ast.expr]) -> None:
        for i, operand in enumerate(list(operands)):
            if self.seen == self.target:
                self.what = f"{ast.unparse(node)} without {ast.unparse(operand)}"
                del operands[i]
            self.seen += 1

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        self._shortened(node, node.values)
        return node.values[0] if len(node.values) == 1 else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "max":
            self._shortened(node, node.args)
            return node.args[0] if len(node.args) == 1 else node
        return node


def shortened(target: int) -> tuple[str, Any]:
    """What was dropped, and the class `Site` without it; ("", ...) when there is nothing more to drop."""
    shorten = _Shorten(target)
    tree = ast.fix_missing_locations(shorten.visit(ast.parse(SOURCE)))
    return shorten.what, _compiled(tree)


def _compiled(tree: ast.AST) -> Any:
    module = types.ModuleType("weakened_site")
    exec(compile(tree, "weakened_site", "exec"), module.__dict__)  # type: ignore[arg-type]  # noqa: S102
    return module.Site  # type: ignore[attr-defined]


class _Weaken(ast.NodeTransformer):
    def __init__(self, codes: tuple[str, ...]) -> None:
        self.codes, self.removed = codes, 0

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if _code_of(node) not in self.codes:
            return node
        self.removed += 1
        return ast.copy_location(ast.Pass(), node)


def site_without(*codes: str) -> Any:
    """The class `Site`, but for the refusals with these codes."""
    weaken = _Weaken(codes)
    tree = ast.fix_missing_locations(weaken.visit(ast.parse(SOURCE)))
    assert weaken.removed == len(codes)
    return _compiled(tree)
