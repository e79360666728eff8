"""Self-Reminder (Xie et al. 2023, Nature Machine Intelligence): the user's text between two reminders.

The wording is our own; run the published one with `prompt=FILE`.
"""

from inferaligner.evaluation.methods.method import Method, MethodContext, Needs
from inferaligner.evaluation.methods.prompt_template import PromptTemplate, shipped

NAME = "self-reminder"
NEEDS: Needs = "nothing"


def make(bench: MethodContext, option: str) -> Method:
    """Takes no option."""
    return PromptTemplate(NAME, "Self-Reminder", bench, shipped("self_reminder"))
