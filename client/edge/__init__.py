"""Inference from a signed release on a Jetson-class device: verify, check the golden outputs, predict.

Needs the `edge` extra alone: no torch, no opacus, no flwr.
"""
