"""``python -m raycache.cli``: the ``raycache`` command where its script is not on the PATH."""

from raycache.cli.commands import main

main()
