"""Goal Priority (Zhang et al. 2024, ACL) without training: safety first, with two worked examples.

The wording is our own; `prompt=FILE` runs the published one.
"""

from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.evaluation.methods.prompt_template import PromptTemplate, shipped

NAME = "goal-priority"


def make(context: MethodContext, option: str) -> Method:
    """There is no option."""
    return PromptTemplate(NAME, "Goal Priority", context, shipped("goal_priority"))
