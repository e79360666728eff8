"""Self-Reminder (Xie et al. 2023, Nature Machine Intelligence): the user's text between two reminders.

The wording is our own; `prompt=FILE` runs the published one.
"""

from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.evaluation.methods.prompt_template import PromptTemplate, shipped

NAME = "self-reminder"


def make(context: MethodContext, option: str) -> Method:
    """There is no option."""
    return PromptTemplate(NAME, "Self-Reminder", context, shipped("self_reminder"))
