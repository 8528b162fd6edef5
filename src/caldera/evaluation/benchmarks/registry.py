"""Benchmarks by name."""

from caldera.errors import UnknownNameError
from caldera.evaluation.benchmark import BenchmarkSpec
from caldera.evaluation.benchmarks.captions import CAPTIONS
from caldera.evaluation.benchmarks.custom import CUSTOM
from caldera.evaluation.benchmarks.gqa import GQA
from caldera.evaluation.benchmarks.llava_bench import LLAVA_BENCH, LLAVA_BENCH_COCO
from caldera.evaluation.benchmarks.mm_vet import MM_VET
from caldera.evaluation.benchmarks.mmbench import MMBENCH, MMBENCH_CN
from caldera.evaluation.benchmarks.mme import MME
from caldera.evaluation.benchmarks.mmmu import MMMU
from caldera.evaluation.benchmarks.nlvr import NLVR
from caldera.evaluation.benchmarks.pope import POPE
from caldera.evaluation.benchmarks.science_qa import SCIENCE_QA
from caldera.evaluation.benchmarks.seed_bench import SEED_BENCH
from caldera.evaluation.benchmarks.textvqa import TEXTVQA
from caldera.evaluation.benchmarks.vizwiz import VIZWIZ
from caldera.evaluation.benchmarks.vqav2 import VQAV2

BENCHMARKS: dict[str, BenchmarkSpec] = {
    spec.name: spec
    for spec in (
        SCIENCE_QA,
        POPE,
        MME,
        MMBENCH,
        MMBENCH_CN,
        SEED_BENCH,
        MMMU,
        NLVR,
        VQAV2,
        GQA,
        TEXTVQA,
        VIZWIZ,
        CAPTIONS,
        CUSTOM,
        LLAVA_BENCH,
        LLAVA_BENCH_COCO,
        MM_VET,
    )
}
"""In the order in which the commands list them."""

OLD_NAMES = {"own": CUSTOM.name, "seed": SEED_BENCH.name}
"""Names of earlier versions, which scripts and run folders may still hold."""


def get_benchmark(name: str) -> BenchmarkSpec:
    """Return the benchmark with exactly this name, or with this old name."""
    name = OLD_NAMES.get(name, name)
    if name not in BENCHMARKS:
        raise UnknownNameError("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]
