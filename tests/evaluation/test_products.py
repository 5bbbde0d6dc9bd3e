"""The setting of float32 products."""

from __future__ import annotations

import torch
from varalign.evaluation.products import exact_products


def test_exact_products_put_the_setting_back():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
