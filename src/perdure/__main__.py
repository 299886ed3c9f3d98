"""The command line as `python -m perdure`, which `accelerate launch -m perdure` needs."""

from perdure.cli.app import main

main()
