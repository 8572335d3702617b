"""Training and evaluation steps lower for TPUs and NVIDIA GPUs on a machine that has neither."""

import dataclasses
import itertools

import jax
import pytest

from benchmarks.compiled import programs
from svt_jax.mesh import make_mesh
from svt_jax.models.config import EncoderConfig
from svt_jax.models.families import FAMILIES
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.config import MeshConfig
from tests.models import tiny

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
MESHES = {1: MeshConfig(data=1), 8: MeshConfig(data=2, fsdp=2, tensor=2)}
DECOMPOSITIONS = {
    ("tpu", "svd"): "Eigh",  # part of its polar decomposition
    ("tpu", "gram"): "Eigh",
    ("tpu", "gram64"): "Qr",  # TPUs have no float64: this is svd
    ("tpu", "auto"): "Qr",
    ("cuda", "svd"): "cusolver_gesvd",
    ("cuda", "gram"): "cusolver_syevd",
    ("cuda", "gram64"): "cusolver_syevd",
    ("cuda", "auto"): "cusolver_syevd",
}
QUICK = {("albert", "auto", "bfloat16", 8)}
OWN = {"modernbert": {"num_hidden_layers": 2, "local_attention": 2}}  # one layer of two goes block by block
CASES = [  # each family once, BERT with every solver and dtype
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in itertools.product(FAMILIES, ("auto", "svd", "gram", "gram64"), ("float32", "bfloat16"), (1, 8))
    if case[1:] == ("auto", "bfloat16", 8) or (case[0] == "bert" and (case[3] == 8 or case[2] == "float32"))
]


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["shifted", "auto"])
def test_a_function_that_vanishes_at_zero_needs_no_eigenproblem_on_a_tpu(solver):
    encoder = EncoderConfig.from_hf(tiny.fields("bert", **SIZES))
    svt = SVTConfig("centered_soft_decay", solver=solver)
    mesh = make_mesh(**dataclasses.asdict(MESHES[8]), devices=jax.devices()[:8])
    for program in programs(encoder, svt, mesh, batch=8, tokens=8):
        tpu, cuda = (program.export(platform).mlir_module() for platform in ("tpu", "cuda"))
        assert "stablehlo.cholesky" in tpu
        assert not [word for word in ("Eigh", "Qr", "lapack", "cusolver_syevd") if word in tpu]
        assert ("cusolver_syevd" in cuda) == (solver == "auto")


@pytest.mark.parametrize(("family", "solver", "dtype", "devices"), CASES)
def test_both_steps_lower_for_accelerators(family, solver, dtype, devices):
    encoder = EncoderConfig.from_hf(tiny.fields(family, **{**SIZES, **OWN.get(family, {})}))
    svt = tiny.fitting(family, SVTConfig("soft_decay", solver=solver))
    mesh = make_mesh(**dataclasses.asdict(MESHES[devices]), devices=jax.devices()[:devices])
    for program in programs(encoder, svt, mesh, batch=8, tokens=8, dtype=dtype):
        for platform in ("tpu", "cuda"):
            exported = program.export(platform)
            assert (exported.platforms, exported.nr_devices) == ((platform,), devices)
            text = exported.mlir_module()
            assert DECOMPOSITIONS[platform, solver] in text
            assert "lapack" not in text
            assert ("xf64>" in text) == (platform == "cuda" and solver in ("gram64", "auto"))
            assert ("xbf16>" in text) == (dtype == "bfloat16")
