"""Other forms of a graph compute the same network; nothing else of it is touched."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.config import LocalSettings
from fedward.common.graph_forms import FORMS, FP32, FUSED, INT8_PRODUCTS, in_form
from fedward.common.models import build_student, flatten, initialise
from fedward.common.onnx_nodes import nodes_of, with_nodes
from fedward.common.onnx_wire import encoded, fields, tensors
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import to_onnx
from fedward.server.release import onnx_session

GraphOf = Callable[..., bytes]
VITS = ["ternary-vit", "ternary-vit-mq", "int8-vit", "ternary-vit-s"]


@pytest.fixture(scope="module")
def graph_of(make_local: Callable[..., LocalSettings]) -> GraphOf:
    """graph_of(student) -> its ONNX graph, norms and biases away from where they start."""

    def make(student: str, side: int = 28) -> bytes:
        local = make_local(student=student, height=side, width=side)
        model = build_student(local.spec)
        initialise(model, KeyedGenerator.from_seed(0))
        latents = flatten(list(model.parameters())).numpy()
        moved = latents + 0.05 * np.random.default_rng(0).normal(size=len(latents))
        return to_onnx(local, moved.astype(np.float32))

    return make


def _operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


def _logits(graph: bytes, images: np.ndarray) -> np.ndarray:
    session = onnx_session(graph)
    return np.concatenate([session.run(None, {"images": row[None]})[0] for row in images])


@pytest.mark.parametrize("student", VITS)
@pytest.mark.parametrize("form", [INT8_PRODUCTS, FUSED])
def test_a_form_answers_like_the_network(graph_of: GraphOf, student: str, form: str) -> None:
    graph = graph_of(student)
    images = np.random.default_rng(1).uniform(-1, 1, (40, 1, 28, 28)).astype(np.float32)
    shipped, found = _logits(graph, images), _logits(in_form(graph, form), images)
    differences = np.abs(shipped[:, 1] - shipped[:, 0] - found[:, 1] + found[:, 0])
    # Eight bits of a range are steps of .4% of it; the answers spread over more than one unit.
    assert 0 < differences.max() < 0.1 * np.std(shipped)
    assert np.median(differences) < 0.03 * np.std(shipped)


@pytest.mark.parametrize(
    ("student", "blocks"), [("ternary-vit", 4), ("ternary-vit-mq", 4), ("int8-vit-s", 5)]
)
def test_every_product_with_a_weight_is_in_int8_and_no_other(
    graph_of: GraphOf, student: str, blocks: int
) -> None:
    graph = graph_of(student)
    before, after = _operators(graph), _operators(in_form(graph, INT8_PRODUCTS))
    assert after["MatMulInteger"] == after["DynamicQuantizeLinear"] == 6 * blocks
    assert after["MatMul"] == before["MatMul"] - 6 * blocks == 2 * blocks
    assert after["DequantizeLinear"] == 2  # patch embedding and head
    assert (after["Conv"], after["Gemm"]) == (1, 1)


def test_attentions_are_fused_where_every_head_has_a_key_of_its_own(graph_of: GraphOf) -> None:
    fused = _operators(in_form(graph_of("ternary-vit"), FUSED))
    assert (fused["QAttention"], fused["Softmax"], fused["MatMul"]) == (4, 0, 0)
    shared = _operators(in_form(graph_of("ternary-vit-mq"), FUSED))
    assert (shared["QAttention"], shared["Softmax"], shared["MatMul"]) == (0, 4, 8)
    for operators in (fused, shared):  # before each half of a block, and at the end
        assert (operators["SkipSimplifiedLayerNormalization"], operators["Pow"]) == (9, 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("student", ["ternary-cnn", "int8-depthwise", "fp32-vit"])
def test_a_graph_without_such_products_stays_as_it_is(graph_of: GraphOf, student: str, form: str) -> None:
    graph = graph_of(student)
    assert in_form(graph, form) == graph


def test_as_shipped_is_as_shipped(graph_of: GraphOf) -> None:
    graph = graph_of("ternary-vit")
    assert in_form(graph, FP32) == graph


@pytest.mark.parametrize("student", ["ternary-vit", "int8-vit-mq"])
def test_a_form_is_a_model_in_standard_operators_but_for_the_attention(
    graph_of: GraphOf, student: str
) -> None:
    onnx.checker.check_model(onnx.load_from_string(in_form(graph_of(student), INT8_PRODUCTS)))
    fused = onnx.load_from_string(in_form(graph_of(student), FUSED))
    assert {node.op_type for node in fused.graph.node if node.domain} <= {
        "QAttention",
        "SkipSimplifiedLayerNormalization",
    }


@pytest.mark.parametrize("student", ["ternary-vit", "ternary-cnn"])
def test_what_is_read_without_onnx_is_what_onnx_reads(graph_of: GraphOf, student: str) -> None:
    graph = graph_of(student)
    model = onnx.load_from_string(graph).graph
    assert [node.operator for node in nodes_of(graph)] == [node.op_type for node in model.node]
    assert [node.inputs for node in nodes_of(graph)] == [tuple(node.input) for node in model.node]
    assert [(one.name, one.data_type, one.shape) for one in tensors(graph)] == [
        (one.name, one.data_type, tuple(one.dims)) for one in model.initializer
    ]
    for one, stored in zip(tensors(graph), model.initializer, strict=True):
        assert graph[one.start : one.end] == stored.raw_data
    assert onnx.load_from_string(with_nodes(graph, nodes_of(graph))) == onnx.load_from_string(graph)


@given(st.binary(max_size=200))
def test_no_bytes_whatever_are_more_than_a_value_error(data: bytes) -> None:
    for read in (tensors, nodes_of, lambda raw: in_form(raw, FUSED)):
        try:
            read(data)
        except ValueError:
            continue


@given(st.integers(1, 500), st.one_of(st.binary(max_size=300), st.integers(0, 2**63)))
def test_a_field_that_is_written_is_read_again(number: int, value: bytes | int) -> None:
    (field,) = fields(encoded(number, value))
    assert field.number == number
    found = field.integer if isinstance(value, int) else encoded(number, value)[field.value : field.end]
    assert found == value


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_cut_model_is_refused(graph_of: GraphOf, cut: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        tensors(graph_of("ternary-vit")[:-cut])
