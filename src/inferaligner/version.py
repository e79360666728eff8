"""The package's version, read by the build and stored in every artifact."""

__version__ = "0.1.0"
