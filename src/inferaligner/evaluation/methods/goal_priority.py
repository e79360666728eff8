"""Goal Priority (Zhang et al. 2024, ACL), without training: safety first, shown with two worked examples.

The wording is our own; run the published one with `prompt=FILE`.
"""

from inferaligner.evaluation.methods.method import Method, MethodContext, Needs
from inferaligner.evaluation.methods.prompt_template import PromptTemplate, shipped

NAME = "goal-priority"
NEEDS: Needs = "nothing"


def make(bench: MethodContext, option: str) -> Method:
    """Takes no option."""
    return PromptTemplate(NAME, "Goal Priority", bench, shipped("goal_priority"))
