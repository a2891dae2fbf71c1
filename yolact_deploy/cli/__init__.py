"""The command line. Each command is a file: it parses, calls one function that can be called from Python as well, and prints.

This package alone may import `exporters`, `engines` and `benchmarks`, and does so inside its commands.
"""

from yolact_deploy.cli.commands import app as app
from yolact_deploy.cli.commands import main as main
