"""Evaluation: what a compressed cache costs in quality."""

from kvengine.eval.perplexity import PerplexityOptions, PerplexityResult, Window, perplexity

__all__ = ["PerplexityOptions", "PerplexityResult", "Window", "perplexity"]
