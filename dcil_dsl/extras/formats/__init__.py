"""Formats of other engines, and one small file: packed, torch-export, ONNX, OpenVINO."""
