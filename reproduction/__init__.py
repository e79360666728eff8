"""Recipes that train and measure what the paper and this package report."""

from inferaligner.cli.terminal import tolerate_any_encoding

# Every module here is a script, and their texts and tables have signs that not every terminal can show.
tolerate_any_encoding()
