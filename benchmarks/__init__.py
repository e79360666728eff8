"""Scripts that time the package; see README.md in this folder."""

from inferaligner.cli.terminal import tolerate_any_encoding

# Every module here is a script, and their texts and tables have signs that not every terminal can show.
tolerate_any_encoding()
