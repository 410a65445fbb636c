"""A child that compiles: a job as a line of JSON on stdin, what came of it as one on stdout."""

import json
import sys

from . import find
from .ahead import Job
from .compile import compile_plugin
from .plugin import UnsupportedError


def main() -> None:
    """Answer until stdin ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a compiler prints is no answer
    for line in sys.stdin:
        job = Job.from_json(json.loads(line))
        try:
            answer = compile_plugin(find(job.plugin), job.request, job.cuda).to_json()
        except UnsupportedError as error:
            answer = {"refused": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
