"""The command line: parse, call, print. Nothing is decided here."""

from raycache.cli.commands import main

__all__ = ["main"]
