"""What pyproject.toml cannot say: the one module in C. All else stands there.

It is optional: where nothing can be compiled, `node.protocol.tree_hashing` does without.
"""

from __future__ import annotations

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("node.protocol._tree_hashing", ["node/protocol/_tree_hashing.c"], optional=True)
    ]
)
