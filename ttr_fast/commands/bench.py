"""`ttr bench`: how fast, and against whom."""

import inspect
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import tyro

from ttr_fast.bench.attention import AttentionOptions
from ttr_fast.bench.case import is_simulated, torch_is_there
from ttr_fast.bench.decode import DecodeOptions
from ttr_fast.bench.gemm import GemmOptions
from ttr_fast.bench.memory import MemoryOptions
from ttr_fast.bench.step import StepOptions
from ttr_fast.bench.targets import TableOptions
from ttr_ref.float_dtype import HALF_FORMATS

NO_TORCH = {
    "cpu": "PyTorch is not installed, so our side is measured alone; to compare: pip install 'temporal-transformer[peers]'",
    "cuda": "there is no PyTorch that finds a GPU here, so our side is measured alone; to compare: https://pytorch.org/get-started/locally",
}


def told(options: type) -> str:
    """The whole docstring: tyro itself leaves the examples out."""
    return inspect.cleandoc(options.__doc__ or "")


Kind = (
    Annotated[AttentionOptions, tyro.conf.subcommand("attention", description=told(AttentionOptions))]
    | Annotated[GemmOptions, tyro.conf.subcommand("gemm", description=told(GemmOptions))]
    | Annotated[StepOptions, tyro.conf.subcommand("step", description=told(StepOptions))]
    | Annotated[DecodeOptions, tyro.conf.subcommand("decode", description=told(DecodeOptions))]
    | Annotated[MemoryOptions, tyro.conf.subcommand("memory", description=told(MemoryOptions))]
    | Annotated[TableOptions, tyro.conf.subcommand("table", description=told(TableOptions))]
)


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Command:
    """Time our kernels against those of others: the same inputs, the same threads, separate processes that take turns.

    Results are compared first, and the machine's own peaks are measured in the same run. A ratio above 1 says that ours is faster.

    Examples:

        ttr bench attention --length 1024 4096 --pass forward both --plot attention.png

        ttr bench attention --bias none log --peer torch-plain --against torch --json results.jsonl

        ttr bench gemm --size 512 1024 --peer numpy

        ttr bench step --dtype f32 bf16 --peer torch-plain torch-bias

        ttr bench decode --position 512 51200 --peer ours-at-window

        ttr bench step --against none --cold

        ttr bench attention --backend cuda --dtype bf16 --length 8192 --heads 16 --head-dim 128
    """

    kind: Kind

    def run(self) -> None:
        """Measure, print, draw."""
        from ttr_fast.bench.measure import Result, compare_all
        from ttr_fast.bench.report import save_plot

        options = self.kind
        comparisons = options.comparisons()
        if options.against == "torch" and not torch_is_there(options.backend) and any(peer is None for _, peer in comparisons):
            say(NO_TORCH[options.backend])
        results = []
        with ExitStack() as stack:
            lines = stack.enter_context(Path(options.json).open("w")) if options.json not in (None, "-") else sys.stdout
            for result in compare_all(comparisons, options, say):
                if isinstance(result, Result):
                    results.append(result)
                if options.json is not None:
                    print(msgspec.json.encode(options.record(result)).decode(), file=lines, flush=True)
        if options.json != "-":
            print(options.text(results))
        if is_simulated(options.backend):
            say("simulated: these are times of the simulator and say nothing of a GPU")
        # 16-bit products may have instructions of their own, faster than the peak that is measured
        if any(result.share_of_peak > 1 for result in results if result.case.dtype not in HALF_FORMATS):
            say("something here ran faster than the machine's peak: other programs were running, measure again when it is quiet")
        if options.plot is not None:
            save_plot(options.plot, results)
            say(f"the plot is {options.plot}")


def say(text: str) -> None:
    """Progress goes to stderr, results to stdout."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
