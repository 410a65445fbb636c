"""SafeEraser: unlearning by small changes of weights, undone by 4 bits, and a gate that says so.

    python benchmarks/unlearning_undone.py [--quick] [--json]

The tiny model learns all answers and then unlearns those on harmful scenes, each weight of a
projection by less than half a step of 4 bits in groups of 64, as small rates change large models
(Zhang et al. 2024, arXiv:2410.16454: on average 21 % of what was to be forgotten is known in full
precision, 83 % at 4 bits).  Rounded to 4 bits the weights are those before unlearning.
Every question of the suite with an even number is answered by the source and by the engine, as
`intaglio verify --behaviour` does, which ends with exit code 3.  `--quick` learns for less long.
"""

import json
import tempfile
from pathlib import Path

import torch
from evidence import Row, run
from typer.testing import CliRunner

from intaglio.cli.frame import app
from intaglio.exporter.export import export
from intaglio.models.model import save
from intaglio.models.safe_eraser import END, SAFE_ERASER, TINY, Unlearning, suite

CODE = 3  # of a gate that fails
BITS, GROUP = 4, 64


def measure(quick: bool) -> list[Row]:
    """Figures of source and engine, and the gate's exit code."""
    torch.set_num_threads(1)
    steps, unlearning = (100, 20) if quick else (300, 300)
    recipe = Unlearning(
        steps=steps, unlearning=unlearning, unlearning_rate=4e-3, cells=BITS, group=GROUP
    )
    torch.manual_seed(recipe.seed)
    module = SAFE_ERASER.build(TINY)
    recipe.train(module, None, None)
    with tempfile.TemporaryDirectory() as name:
        folder, checkpoint = Path(name), Path(name) / "unlearnt.pt"
        save(checkpoint, SAFE_ERASER.name, TINY, module.eval())
        lines = [line for line in suite() if int(line["question"].split()[2][:2]) % 2 == 0]
        (folder / "suite.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        export(checkpoint, folder / "b", passes=[f"rtn:bits={BITS},group={GROUP}"], verify=False)
        command = ["verify", str(folder / "b"), "--against", str(checkpoint), "--json"]
        command += ["--answer-tokens", "12", "--stop", END]
        command += ["--behaviour", str(folder / "suite.jsonl")]
        found = CliRunner().invoke(app, command)
    return [
        *(
            Row(
                name=f"{BITS} bits: {figure['name']}",
                value=figure["engine"],
                unit="of the questions",
                against=f"the source, {figure['source']:.3f}",
                note=f"{figure['questions']} questions",
            )
            for figure in json.loads(found.stdout)["figures"]
        ),
        Row(
            name="exit code of the gate",
            value=found.exit_code,
            unit="",
            target=str(CODE),
            holds=found.exit_code == CODE,
        ),
    ]


if __name__ == "__main__":
    run(__doc__, measure)
