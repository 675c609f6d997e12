"""Encoders in other runtimes than torch: the towers as graphs, in float32 or int8.

- exporting.py: both towers of an encoder as ONNX graphs
- runtimes.py: what can run them
- openvino_runtime.py: OpenVINO, with nncf's quantisation
- onnx_runtime.py: onnxruntime, with its own
- sensitivity.py: which layers lose most in int8
- making.py: from graphs to a folder
- folder.py: what such a folder holds
- encoder.py: the `Encoder` that runs it
"""
