"""transformers' modeling_utils, imported without torchao.

Where torchao is installed, transformers imports all of it with its quantizers: most of a second and lines on stderr, for weights
that torchao has quantised, of which there are none here. Its optimizers are imported where they are used.
"""

from __future__ import annotations

from unittest import mock

import transformers.utils

with mock.patch.object(transformers.utils, "is_torchao_available", return_value=False):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["ALL_ATTENTION_FUNCTIONS"]
