"""Each rule of a site's policy refuses what it is for and nothing else, and is the only one that does."""

import ast
import inspect
import types
from typing import Any

import pytest
from guarded import BASE, LENIENT, TODAY, facts, orders_for, plan_of
from rule_cases import LISTED, PASSED, REFUSED, Case, decisions

from clinimeta.client import rules
from clinimeta.client.policy import Policy
from clinimeta.client.rules import RULES, every, judge, largest_answer, reads_table
from clinimeta.common.codec import encode
from clinimeta.common.metrics import Mean
from clinimeta.common.records import REFUSALS, Calibration, MetaGradient

WRONG = [(code, i) for code, cases in REFUSED.items() for i in range(len(cases))]
RIGHT = [(code, i) for code, cases in PASSED.items() for i in range(len(cases))]
SOURCE = inspect.getsource(rules)


def test_every_rule_has_cases_and_a_code_that_both_sides_know() -> None:
    assert set(RULES) == set(REFUSED) == set(PASSED)
    assert set(RULES) <= set(REFUSALS)


@pytest.mark.parametrize(("code", "which"), WRONG)
def test_it_is_refused_by_its_own_rule_and_by_no_other(code: str, which: int) -> None:
    arguments = REFUSED[code][which].arguments()
    (verdict,) = every(*arguments)
    assert verdict.code == code
    assert judge(*arguments) == verdict
    assert 10 < len(verdict.reason) < 200


@pytest.mark.parametrize(("code", "which"), RIGHT)
def test_what_is_just_inside_every_limit_passes(code: str, which: int) -> None:
    assert every(*PASSED[code][which].arguments()) == ()


def test_the_first_of_several_refusals_is_the_most_fundamental() -> None:
    policy = {"min_tasks": 100, "algorithms": (), "secure_aggregation": "required"}
    arguments = Case(stands="new", policy=policy).arguments()
    codes = [verdict.code for verdict in every(*arguments)]
    assert codes == ["not_approved", "algorithm_not_allowed", "secure_aggregation_required", "too_few_tasks"]
    first = judge(*arguments)
    assert first is not None
    assert first.code == "not_approved"


def test_a_name_in_a_reason_cannot_steer_a_terminal() -> None:
    columns = tuple(c.model_copy(update={"name": f"{c.name}\x1b[2J"}) for c in BASE.table.columns)
    case = Case(plan=plan_of(table={"columns": columns}), policy={"columns": ("sick", "person")})
    (verdict,) = every(*case.arguments())
    assert verdict.reason.isprintable()


def test_the_safe_defaults_refuse_a_plan_without_secure_aggregation() -> None:
    found = every(Policy(), decisions(BASE, "new"), None, BASE, facts())
    assert [verdict.code for verdict in found] == ["not_approved", "secure_aggregation_required"]


def test_orders_that_are_answered_from_the_table_are_known_as_such() -> None:
    read = {name for name, order in orders_for(BASE).items() if reads_table(order)}
    assert read == {"meta-gradient", "quantised", "masking, with parameters", "calibration"}


def test_no_answer_is_larger_than_was_said_before_it_was_made() -> None:
    orders = orders_for(BASE)
    order = orders["meta-gradient"]
    metrics = {"query_loss": Mean(1.0, 1.0), "query_accuracy": Mean(1.0, 1.0)}
    made = MetaGradient("nonce", "run", 1, "bern", 4.0, order.params, metrics)  # type: ignore[union-attr]
    assert encode(made).size <= largest_answer(order, BASE)
    asked = orders["calibration"]
    measured = Calibration("nonce", "run", "bern", (1,), (0.5, 0.5))
    assert encode(measured).size <= largest_answer(asked, BASE)


AUTOMATIC = Policy(**{**LENIENT, **LISTED})
STANDING = [
    (Policy(), decisions(BASE, "approved")),
    (AUTOMATIC, decisions(BASE, "approved")),
    (AUTOMATIC, decisions(BASE, "auto")),
    (Policy(), decisions(BASE, "auto")),
    (AUTOMATIC, decisions(BASE, "auto", days=365)),
    (AUTOMATIC, decisions(BASE, "new")),
    (AUTOMATIC, decisions(BASE, "withdrawn")),
]
"""Policy and decisions, of which the first three let the plan's approval stand."""


# A rule that is weakened anywhere lets one of the cases above through


class _Weaken(ast.NodeTransformer):
    """Makes one change to the rules: the `target`-th of all parts left out, or comparisons moved."""

    def __init__(self, target: int) -> None:
        self.target, self.seen, self.what = target, 0, ""

    def _chosen(self, what: str) -> bool:
        self.seen += 1
        if self.seen - 1 == self.target:
            self.what = what
            return True
        return False

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        for i, operand in enumerate(list(node.values)):
            if self._chosen(f"{ast.unparse(node)} without {ast.unparse(operand)}"):
                del node.values[i]
                break
        return node.values[0] if len(node.values) == 1 else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        others = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq}
        other = others.get(type(node.ops[0]))
        if other is not None and self._chosen(f"{ast.unparse(node)} as {other.__name__}"):
            node.ops[0] = other()
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        for i, key in enumerate(list(node.keys)):
            if self._chosen(f"no rule {ast.unparse(key) if key else ''}"):
                del node.keys[i], node.values[i]
                break
        return node


def weakened(target: int) -> tuple[str, Any]:
    """What was changed, and the rules so; ("", ...) where there is nothing more to change."""
    weaken = _Weaken(target)
    tree = ast.parse(SOURCE)
    tree.body = [weaken.visit(node) if _is_a_rule(node) else node for node in tree.body]
    module = types.ModuleType("weakened_rules")
    exec(compile(ast.fix_missing_locations(tree), "weakened_rules", "exec"), module.__dict__)  # noqa: S102
    return weaken.what, module


def _is_a_rule(node: ast.stmt) -> bool:
    """A rule, or the list of them; `largest_answer` and `reads_table` have tests of their own."""
    if isinstance(node, ast.FunctionDef):
        return node.name.startswith("_") and node.name not in ("_violations", "_of_plan")
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "RULES"


def agrees(module: Any) -> bool:
    """Whether rules say of every case what they should."""
    try:
        refused = all(
            [verdict.code for verdict in module.every(*case.arguments())] == [code]
            for code, cases in REFUSED.items()
            for case in cases
        )
        passed = not any(module.every(*case.arguments()) for cases in PASSED.values() for case in cases)
        stands = [module.is_approved(policy, known, BASE, TODAY) for policy, known in STANDING]
        return refused and passed and stands == [True, True, True, False, False, False, False]
    except Exception:  # a mutant may fall over anything
        return False


def test_a_weakened_rule_is_noticed() -> None:
    unnoticed, target = [], 0
    while True:
        what, module = weakened(target)
        if not what:
            break
        if agrees(module):
            unnoticed.append(what)
        target += 1
    assert target > 50
    assert not unnoticed, unnoticed


def test_unchanged_rules_agree_with_every_case() -> None:
    assert agrees(weakened(10**6)[1])
