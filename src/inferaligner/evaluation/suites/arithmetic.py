"""Single-step word problems with four numbers to choose from, made by a seeded program.

SmolLM2-135M is at chance here (22 % of 60 problems). For a model that small the suite shows only whether its
choices change, not whether they are good.
"""

import random

from inferaligner.evaluation.suites.suite import Item, Shipped, Suite

_NAMES = ("Ana", "Ben", "Chidi", "Dana", "Emil", "Fay", "Goran", "Hana", "Ines", "Jonas")
_THINGS = ("apples", "books", "coins", "marbles", "pencils", "plates", "stamps", "tickets")
_PROBLEMS = (
    ("{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?", "+"),
    ("{name} had {c} {things} and gave {b} of them away. How many {things} are left?", "-"),
    ("{name} buys {a} boxes with {b} {things} in each. How many {things} is that?", "*"),
    ("There are {a} {things} on one shelf and {b} on another. How many are there altogether?", "+"),
    ("{name} shares {p} {things} equally among {b} friends. How many {things} does each get?", "/"),
)


def _problems(count: int = 600) -> list[Item]:
    draw, items = random.Random("arithmetic"), []
    for number in range(count):
        text, sign = _PROBLEMS[number % len(_PROBLEMS)]
        a, b = draw.randint(2, 12), draw.randint(2, 9)
        right = {"+": a + b, "-": a, "*": a * b, "/": a}[sign]
        wrong = {right + step for step in (-3, -2, -1, 1, 2, 3, 10) if right + step > 0}
        choices = [str(value) for value in sorted([right, *draw.sample(sorted(wrong), 3)])]
        question = text.format(
            name=draw.choice(_NAMES), things=draw.choice(_THINGS), a=a, b=b, c=a + b, p=a * b
        )
        prompt = f"{question} Answer with one of these numbers: {', '.join(choices)}."
        items.append(Item(prompt, sign, tuple(choices), str(right)))
    return items


ARITHMETIC = Suite(
    "arithmetic",
    "Single-step word problems",
    "utility",
    Shipped(_problems),
    "pick",
    citation="Made by inferaligner (evaluation/suites/arithmetic.py).",
    licence="Apache-2.0",
)
