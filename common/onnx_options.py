"""How a release's graph is run: one thread, and its int8 codes expanded to fp32 weights once, at load."""

import onnxruntime


def onnx_session(graph: bytes) -> onnxruntime.InferenceSession:
    """A graph ready to run, on one CPU thread."""
    return onnxruntime.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])


def session_options() -> onnxruntime.SessionOptions:
    """Options of every onnxruntime session of a release.

    With its QDQ rewriting on, onnxruntime keeps each DequantizeLinear in the graph and expands the weights
    again for every image; off, they are folded into constants when the session is made.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options
