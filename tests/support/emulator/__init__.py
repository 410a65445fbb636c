"""Runs the PTX that Triton makes, on a machine without a GPU.

Threads of many blocks go in step, an instruction at a time, each a row of numpy's arrays.  What a
GPU would not do the same way every time is a fault: accesses out of bounds or not aligned, and
those of two warps that no barrier orders; copies of `cp.async` arrive as late as they may.  Tensor
cores are those of mma.sync, wgmma and tcgen05, with products in float64.  Nothing is said of time.
"""
