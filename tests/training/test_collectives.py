"""What devices exchange and what each holds, read from the compiled steps."""

import collections
import dataclasses
import functools

import jax
import pytest

from benchmarks.compiled import collectives, programs
from benchmarks.passed_on import PASSED_ON
from svt_jax.mesh import make_mesh
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.config import MeshConfig
from svt_jax.run.task_model import DEMO_ENCODER

BATCH, TOKENS = 16, 24
ROWS = BATCH // 2  # packed rows: see benchmarks.compiled
ASKING = ROWS * 8  # places of a row from which first tokens ask
ENCODER = dataclasses.replace(
    DEMO_ENCODER, num_hidden_layers=1, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
)
DATA, FSDP, TENSOR, ALL = (
    MeshConfig(data=8), MeshConfig(data=1, fsdp=8), MeshConfig(data=1, tensor=4), MeshConfig(2, 2, 2)
)  # fmt: skip
PLAIN = SVTConfig()
METRICS = 64
"""Bytes of the scalars that are summed in addition to gradients: loss, number of examples."""


@functools.cache
def compiled(config: MeshConfig, svt: SVTConfig, step: int = 0):
    """Collectives and memory of a compiled step: step 0 trains, step 1 evaluates."""
    mesh = make_mesh(**dataclasses.asdict(config), devices=jax.devices()[: config.data * config.fsdp * config.tensor])
    program = programs(ENCODER, svt, mesh, batch=BATCH, tokens=TOKENS)[step]
    done = program.compile()
    return collectives(done.as_text(), mesh), done.memory_analysis(), program.arguments[0]


def state_bytes(state) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def volumes(found):
    """Bytes by kind of collective and mesh axes."""
    sums = collections.Counter()
    for each in found:
        sums[each.kind, each.axes] += each.size
    return sums


SOLVERS = ["gram", pytest.param("svd", marks=pytest.mark.slow), pytest.param("gram64", marks=pytest.mark.slow)]


@pytest.mark.parametrize("solver", SOLVERS)
def test_over_data_only_gradients_and_metrics_are_summed(solver):
    found, _, state = compiled(DATA, SVTConfig("soft_decay", solver=solver))
    assert {(each.kind, each.axes) for each in found} == {("all-reduce", ("data",))}
    unused_positions = (ENCODER.max_position_embeddings - TOKENS) * ENCODER.hidden_size * 4
    key_bias = ENCODER.num_hidden_layers * ENCODER.hidden_size * 4  # its gradient is zero
    gradients = state_bytes(state.params) - unused_positions - key_bias
    assert gradients < sum(each.size for each in found) <= gradients + METRICS


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [FSDP, TENSOR, ALL], ids=["fsdp=8", "tensor=4", "2x2x2"])
@pytest.mark.parametrize("solver", ["svd", "gram"])
def test_the_transformation_adds_no_exchange_but_its_parameters_gradient(mesh, solver):
    plain, with_svt = (volumes(compiled(mesh, svt)[0]) for svt in (PASSED_ON, SVTConfig("soft_decay", solver=solver)))
    assert plain.keys() == with_svt.keys()
    for key, size in with_svt.items():
        assert abs(size - plain[key]) <= METRICS, key


@pytest.mark.slow
def test_without_a_transformation_the_last_layer_exchanges_the_first_token_alone():
    first, whole = compiled(TENSOR, PLAIN)[0], compiled(TENSOR, PASSED_ON)[0]
    rows = lambda found, count: sum(
        each.shapes.count(f"f32[{count},{ENCODER.hidden_size}]") for each in found if each.kind == "all-reduce"
    )
    # all tokens: the inputs of queries, keys and values, backward; if whole also attention's and feed-forward's sums
    assert rows(whole, ROWS * TOKENS) == 6
    assert rows(first, ROWS * TOKENS) == 2
    # first tokens: attention's sum and the inputs of queries by their rows, the feed-forward's two by example
    assert (rows(first, ASKING), rows(whole, ASKING)) == (2, 0)
    assert rows(first, BATCH) == rows(whole, BATCH) + 2


@pytest.mark.slow
def test_over_tensor_hidden_states_are_gathered_once_after_the_lookup():
    found, _, _ = compiled(TENSOR, SVTConfig("soft_decay", solver="gram"))
    hidden = f"f32[{ROWS},{TOKENS},{ENCODER.hidden_size}]"
    assert sum(each.kind != "all-reduce" for each in found) <= 2  # hidden states, and the head's input backward
    assert sum(hidden in each.shapes for each in found if each.kind == "all-gather") == 1
    assert not [each for each in found if each.kind in ("all-to-all", "collective-permute")]


@pytest.mark.slow
def test_no_exchange_has_the_whole_batch_where_it_is_divided():
    found, _, _ = compiled(ALL, SVTConfig("soft_decay", solver="gram"))
    whole = f"[{ROWS},{TOKENS},"
    assert not [each for each in found if any(whole in shape for shape in each.shapes)]


@pytest.mark.slow
def test_evaluation_over_data_gathers_logits_alone():
    found, _, _ = compiled(DATA, SVTConfig("soft_decay", solver="gram"), step=1)
    assert {(each.kind, each.shapes) for each in found} <= {("all-gather", (f"f32[{BATCH},2]",))}


@pytest.mark.slow
def test_fsdp_divides_the_state():
    _, memory, state = compiled(FSDP, SVTConfig("soft_decay", solver="gram"))
    assert memory.argument_size_in_bytes <= state_bytes(state) / 6
    assert memory.alias_size_in_bytes >= 0.9 * memory.argument_size_in_bytes  # reused for the new state
