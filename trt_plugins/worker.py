"""A child that compiles, so that an export imports no Triton: see `ahead.py`."""

from collections.abc import Mapping
from typing import Any

from intaglio.runtime.child_worker import serve

from . import find
from .ahead import Job
from .compile_plugin import compile_plugin


def compile_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Compile the kernels of a job; both it and they are JSON values."""
    asked = Job.from_json(job)
    return compile_plugin(find(asked.plugin), asked.request, asked.cuda).to_json()


if __name__ == "__main__":
    serve({"compile": compile_job})
