"""Times torch's f16 attention for one query at the shape of Llama-3-8B: cuda_bench's yardstick.

Prints the fastest of torch's kernels (scaled_dot_product_attention over grouped heads, each backend
that accepts the shape), by CUDA graph replay over caches that do not fit in the L2 cache together.
"""

from __future__ import annotations

import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def time_ms(backend: SDPBackend, tokens: int, copies: int) -> float:
    """Median time of one call, in ms."""
    q = torch.randn(1, HEADS, 1, HEAD_DIM, device="cuda", dtype=torch.float16)
    kv = [
        torch.randn(2, 1, KV_HEADS, tokens, HEAD_DIM, device="cuda", dtype=torch.float16)
        for _ in range(copies)
    ]

    def step() -> None:
        for k, v in kv:
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    with sdpa_kernel(backend):
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(4):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / (4 * copies))
    return statistics.median(times)


def main() -> None:
    """Prints a line for each length and backend."""
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for tokens in (32768, 131072):
        copies = max(2, (1 << 30) // (tokens * KV_HEADS * HEAD_DIM * 4))
        size = tokens * KV_HEADS * HEAD_DIM * 4
        for name, backend in BACKENDS.items():
            try:
                ms = time_ms(backend, tokens, copies)
            except RuntimeError as error:
                print(f"sdpa {name:10} {tokens:7} tokens: {str(error).splitlines()[0]}")
                continue
            print(f"sdpa {name:10} {tokens:7} tokens: {ms:9.4f} ms {size / ms * 1e-6:7.0f} GB/s")


if __name__ == "__main__":
    main()
