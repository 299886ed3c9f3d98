"""The entry point for `python -m perdure`, which `accelerate launch -m perdure` needs."""

from perdure.cli.app import main

main()
