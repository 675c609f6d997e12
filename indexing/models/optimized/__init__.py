"""Encoders in other runtimes than torch: the towers as graphs, in float32 or int8.

exporting.py    both towers of an encoder as ONNX graphs
runtimes.py     what can run them, and how they get there
openvino.py     OpenVINO, with nncf's quantisation
onnx.py         onnxruntime, with its own
sensitivity.py  which layers lose most in int8
folder.py       what a folder of such a model holds
encoder.py      the `Encoder` that runs it
"""
