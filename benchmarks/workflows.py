"""Graphs of the shapes that workflows have, with times and sizes from stated distributions, for the simulator.

The shapes of Montage, Epigenomics, CyberShake, LIGO Inspiral and SIPHT are those that Bharathi et al. describe
("Characterization of scientific workflows", WORKS 2008) and the Pegasus project publishes; the numerical ones are the
task graphs of the tiled algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from cluster.simulation.graph_runs import GraphTask

__all__ = ["FAMILIES", "MEDIAN_BYTES", "MEDIAN_SECONDS", "SIGMA_BYTES", "SIGMA_SECONDS"]

MEDIAN_SECONDS = 0.3
SIGMA_SECONDS = 0.5
MEDIAN_BYTES = 10_000_000
SIGMA_BYTES = 1.0

Tasks = list[GraphTask]


class Builder:
    """Adds tasks; each function has a median time and size of its own, and each task varies around these."""

    def __init__(self, random: Random) -> None:
        self.tasks: Tasks = []
        self._random = random
        self._medians: dict[str, tuple[float, float]] = {}

    def add(self, function: str, inputs: Sequence[int] = (), *, time: float = 1.0, size: float = 1.0) -> int:
        """One task; `time` and `size` scale the function's medians."""
        random = self._random
        medians = self._medians.get(function)
        if medians is None:
            medians = self._medians[function] = (
                MEDIAN_SECONDS * random.lognormvariate(0, SIGMA_SECONDS / 2),
                MEDIAN_BYTES * random.lognormvariate(0, SIGMA_BYTES / 2),
            )
        seconds = medians[0] * time * random.lognormvariate(0, SIGMA_SECONDS)
        nbytes = int(medians[1] * size * random.lognormvariate(0, SIGMA_BYTES / 2))
        self.tasks.append(GraphTask(tuple(inputs), seconds, nbytes, function))
        return len(self.tasks) - 1

    def level(
        self, function: str, inputs: Sequence[Sequence[int]], *, time: float = 1.0, size: float = 1.0
    ) -> list[int]:
        """Tasks of one function, one for each list of inputs."""
        return [self.add(function, each, time=time, size=size) for each in inputs]

    def combine(self, function: str, level: list[int], arity: int) -> int:
        """A tree over a level; its root."""
        while len(level) > 1:
            groups = [level[start : start + arity] for start in range(0, len(level), arity)]
            level = [group[0] if len(group) == 1 else self.add(function, group, time=0.3) for group in groups]
        return level[0]


def montage(make: Builder, size: int) -> None:
    images = max(4, size // 5)
    projected = make.level("mProject", [()] * images, time=2.0)
    differences = [
        make.add("mDiff", (projected[index], projected[(index + step) % images]), time=0.3, size=0.3)
        for index in range(images)
        for step in (1, 2)
    ]
    fit = make.add("mConcatFit", differences, time=0.3, size=0.01)
    model = make.add("mBgModel", (fit,), size=0.01)
    corrected = make.level("mBackground", [(image, model) for image in projected], time=0.5)
    table = make.add("mImgtbl", corrected, time=0.2, size=0.01)
    added = make.add("mAdd", (*corrected, table), time=2.0, size=4.0)
    make.add("mShrink", (added,), size=0.1)


def epigenomics(make: Builder, size: int) -> None:
    lanes = max(1, size // 100)
    merged = []
    for _ in range(lanes):
        split = make.add("fastqSplit", size=4.0)
        chunks = []
        for _ in range(max(2, size // lanes // 4 - 1)):
            piece = make.add("filterContams", (split,), time=0.3)
            piece = make.add("sol2sanger", (piece,), time=0.2)
            piece = make.add("fastq2bfq", (piece,), time=0.2)
            chunks.append(make.add("map", (piece,), time=3.0, size=0.3))
        merged.append(make.add("mapMerge", chunks, time=0.5))
    whole = make.add("mapMergeAll", merged, time=0.5)
    make.add("pileup", (make.add("maqIndex", (whole,)),))


def cybershake(make: Builder, size: int) -> None:
    sites = max(1, size // 80)
    peaks = []
    for _ in range(sites):
        tensors = make.level("ExtractSGT", [()] * 4, time=3.0, size=10.0)
        for index in range(size // sites // 2 - 2):
            synthesis = make.add("SeismogramSynthesis", (tensors[index % 4],), time=1.0, size=0.02)
            peaks.append(make.add("PeakValCalc", (synthesis,), time=0.05, size=0.001))
    make.add("ZipPSA", peaks, time=0.3)


def inspiral(make: Builder, size: int) -> None:
    groups = max(1, size // 48)
    for _ in range(groups):
        banks = make.level("TmpltBank", [()] * 12, time=0.5, size=0.1)
        first = make.level("Inspiral", [(bank,) for bank in banks], time=4.0, size=0.1)
        coincident = make.add("Thinca", first, time=0.1, size=0.1)
        triggers = make.level("TrigBank", [(coincident,)] * 11, time=0.1, size=0.1)
        second = make.level("Inspiral2", [(trigger,) for trigger in triggers], time=4.0, size=0.1)
        make.add("Thinca2", second, time=0.1, size=0.1)


def sipht(make: Builder, size: int) -> None:
    for _ in range(max(1, size // 30)):
        patser = make.level("Patser", [()] * 17, time=0.1, size=0.05)
        concatenated = make.add("PatserConcat", patser, time=0.1)
        searches = [make.add(name, time=time) for name, time in (("Blast", 4.0), ("RNAMotif", 0.5), ("Findterm", 3.0))]
        srna = make.add("SRNA", searches, time=1.0)
        parse = make.add("FFNParse", (srna,), time=0.1)
        candidates = [
            make.add(name, (srna, parse), time=1.0) for name in ("BlastCandidate", "BlastQRNA", "BlastSynteny")
        ]
        make.add("Annotate", (concatenated, *candidates), time=0.3)


def stencil_1d(make: Builder, size: int) -> None:
    width = max(4, int(math.sqrt(size) * 2))
    level = make.level("init", [()] * width)
    for _ in range(max(1, size // width - 1)):
        level = make.level(
            "step", [[level[other] for other in (x - 1, x, x + 1) if 0 <= other < width] for x in range(width)]
        )


def stencil_2d(make: Builder, size: int) -> None:
    side = max(3, round((size * 2) ** (1 / 3)))
    level = make.level("init", [()] * (side * side))
    for _ in range(max(1, size // (side * side) - 1)):
        near = [
            [
                level[(y + dy) * side + x + dx]
                for dy, dx in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
                if 0 <= y + dy < side and 0 <= x + dx < side
            ]
            for y in range(side)
            for x in range(side)
        ]
        level = make.level("step", near)


def tree(make: Builder, size: int) -> None:
    make.combine("add", make.level("load", [()] * (size // 2)), 2)


def wide_tree(make: Builder, size: int) -> None:
    loaded = make.level("load", [()] * (size * 2 // 5))
    mapped = make.level("transform", [(each,) for each in loaded], time=0.5)
    make.combine("merge", make.level("part", [(each,) for each in mapped], size=0.3), 8)


def all_to_all(make: Builder, size: int) -> None:
    width = max(2, min(40, math.isqrt(size)))
    level = make.level("make", [()] * width)
    for _ in range(max(1, min(3, size // width - 1))):
        level = make.level("exchange", [level] * width, size=1.0)


def map_reduce(make: Builder, size: int) -> None:
    mappers, reducers = max(2, size // 3), max(2, min(24, size // 24))
    mapped = make.level("map", [()] * mappers)
    for place in range(reducers):
        make.add("reduce", [make.add("split", (each,), time=0.02, size=0.05) for each in mapped[place::2]], time=2.0)


def fft(make: Builder, size: int) -> None:
    width = 4
    while width * 2 * (int(math.log2(width * 2)) + 1) <= size:
        width *= 2
    level = make.level("input", [()] * width)
    for stage in range(int(math.log2(width))):
        level = make.level("butterfly", [(level[x], level[x ^ (1 << stage)]) for x in range(width)])


def cholesky(make: Builder, size: int) -> None:
    tiles = max(3, round((size * 6) ** (1 / 3)))
    tile: dict[tuple[int, int], int] = {}

    def update(name: str, place: tuple[int, int], *others: tuple[int, int], time: float) -> None:
        inputs = [tile[each] for each in (place, *others) if each in tile]
        tile[place] = make.add(name, inputs, time=time)

    for k in range(tiles):
        update("potrf", (k, k), time=0.5)
        for i in range(k + 1, tiles):
            update("trsm", (i, k), (k, k), time=0.8)
        for i in range(k + 1, tiles):
            update("syrk", (i, i), (i, k), time=0.8)
            for j in range(k + 1, i):
                update("gemm", (i, j), (i, k), (j, k), time=1.0)


def lu(make: Builder, size: int) -> None:
    tiles = max(3, round((size * 3) ** (1 / 3)))
    tile: dict[tuple[int, int], int] = {}

    def update(name: str, place: tuple[int, int], *others: tuple[int, int], time: float) -> None:
        inputs = [tile[each] for each in (place, *others) if each in tile]
        tile[place] = make.add(name, inputs, time=time)

    for k in range(tiles):
        update("getrf", (k, k), time=0.7)
        for i in range(k + 1, tiles):
            update("trsm", (i, k), (k, k), time=0.8)
            update("trsm", (k, i), (k, k), time=0.8)
        for i in range(k + 1, tiles):
            for j in range(k + 1, tiles):
                update("gemm", (i, j), (i, k), (k, j), time=1.0)


def pipeline(make: Builder, size: int) -> None:
    for _ in range(max(1, size // 6)):
        value = make.add("read")
        for stage in ("parse", "clean", "score", "rank", "write"):
            value = make.add(stage, (value,))


def diamonds(make: Builder, size: int) -> None:
    for _ in range(max(1, size // 12)):
        value = make.add("top")
        for _ in range(2):
            value = make.add("bottom", make.level("side", [(value,)] * 4))


def fork_join(make: Builder, size: int) -> None:
    width = max(2, size // 5)
    value = make.add("begin")
    for _ in range(4):
        value = make.add("join", make.level("work", [(value,)] * width, size=0.3), time=0.2)


def layered(make: Builder, size: int) -> None:
    random = make._random
    width = max(4, size // 8)
    level = make.level("source", [()] * width)
    for depth in range(7):
        level = make.level(f"layer{depth}", [random.sample(level, random.randint(1, 3)) for _ in range(width)])


def wavefront(make: Builder, size: int) -> None:
    side = max(3, math.isqrt(size))
    cells: dict[tuple[int, int], int] = {}
    for y in range(side):
        for x in range(side):
            near = [cells[each] for each in ((y - 1, x), (y, x - 1)) if each in cells]
            cells[y, x] = make.add("cell", near)


def bag(make: Builder, size: int) -> None:
    make.level("task", [()] * size)


def sweep(make: Builder, size: int) -> None:
    data = make.level("load", [()] * 4, size=10.0)
    scores = [make.add("fit", (data[index % 4],), size=0.001) for index in range(size - 6)]
    make.add("best", scores, time=0.1)


def broadcast(make: Builder, size: int) -> None:
    model = make.add("model", size=20.0)
    chunks = make.level("chunk", [()] * (size // 2))
    make.level("apply", [(chunk, model) for chunk in chunks], size=0.1)


FAMILIES: dict[str, Callable[[Builder, int], None]] = {
    "Montage": montage,
    "Epigenomics": epigenomics,
    "CyberShake": cybershake,
    "Inspiral": inspiral,
    "SIPHT": sipht,
    "stencil 1D": stencil_1d,
    "stencil 2D": stencil_2d,
    "tree": tree,
    "blockwise and tree": wide_tree,
    "all-to-all": all_to_all,
    "map-reduce": map_reduce,
    "FFT butterfly": fft,
    "Cholesky": cholesky,
    "LU": lu,
    "pipeline": pipeline,
    "diamonds": diamonds,
    "fork-join": fork_join,
    "random layers": layered,
    "wavefront": wavefront,
    "bag": bag,
    "sweep": sweep,
    "broadcast": broadcast,
}
