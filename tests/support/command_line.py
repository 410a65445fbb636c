"""Commands within this process, and what one that refuses has to say."""

import re

from typer.testing import CliRunner, Result

from intaglio.cli import commands
from intaglio.cli.frame import app


def invoke(*arguments: object, width: int = 80) -> Result:
    """Run the command line on a terminal of `width` columns; what it does not expect is raised."""
    assert commands  # importing it adds the commands to the app
    runner = CliRunner(env={"COLUMNS": str(width)})
    texts = [str(argument) for argument in arguments]
    return runner.invoke(app, texts, prog_name="intaglio", catch_exceptions=False)


def assert_refused(result: Result, message: str) -> None:
    """Exit code 1, one message on stderr, nothing on stdout, no traceback."""
    assert result.exit_code == 1, result.output
    assert re.search(rf"(?s)intaglio: .*{message}", result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
