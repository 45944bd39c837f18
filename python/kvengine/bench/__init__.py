"""Measuring speed: engines that take turns, and what the machine would allow.

``engines`` has ours, ``peers`` others; ``measure`` runs tests on all of them in one go, so that
whatever slows the machine down slows all of them down; ``limits`` says how fast the machine could
be. The verb ``kvengine bench`` (``kvengine.cli.bench``) puts them together.
"""
