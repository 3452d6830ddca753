"""transformers' modeling_utils and quantizers, imported without torchao: whoever needs what is in them takes it from here.

Where torchao is installed, transformers imports all of it with its quantizers: most of a second and lines on stderr, for weights
that torchao has quantised, of which there are none here. Its optimizers are imported where they are used.
"""

from __future__ import annotations

from unittest import mock

import transformers.utils

with mock.patch.object(transformers.utils, "is_torchao_available", return_value=False):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

__all__ = ["ALL_ATTENTION_FUNCTIONS", "HfQuantizer", "PreTrainedModel", "should_convert_module"]
