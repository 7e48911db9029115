"""Where mixed precision may be used: what the machine says of itself decides."""

import os

import pytest
import tensorflow as tf

from components.trainer import hardware


@pytest.mark.parametrize(
    ("gpus", "flags", "expected"),
    [
        ([], "flags : avx2 avx512f avx512_bf16", True),
        ([], "flags : avx512f amx_bf16 amx_int8", True),
        ([], "flags : avx2 avx512f avx512_vnni", False),
        ([{"compute_capability": (8, 0)}], "flags : avx2", True),
        ([{"compute_capability": (9, 0)}, {"compute_capability": (7, 5)}], "flags : avx512_bf16", False),
        ([{}], "flags : avx2", True),  # not NVIDIA's
    ],
)
def test_bfloat16_is_used_where_there_are_products_of_it(monkeypatch, tmp_path, gpus, flags, expected):
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: gpu)
    assert hardware.has_bfloat16() is expected


def test_without_an_account_of_the_cpu_there_is_no_bfloat16(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert not hardware.has_bfloat16()


@pytest.mark.parametrize(
    ("gpus", "flags", "expected"),
    [
        (1, "", "--xla_gpu_enable_triton_gemm=false"),
        (1, "--xla_dump_to=/x", "--xla_gpu_enable_triton_gemm=false --xla_dump_to=/x"),
        (1, "--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
        (1, "/a/file/of/flags", "/a/file/of/flags"),
        (0, "--xla_dump_to=/x", "--xla_dump_to=/x"),
    ],
)
def test_xla_searches_no_kernels_on_a_gpu_unless_it_is_told_to(monkeypatch, gpus, flags, expected):
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [gpu] * gpus)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda device, growth: None)
    monkeypatch.setenv("XLA_FLAGS", flags)
    hardware.choose_strategy()
    assert os.environ["XLA_FLAGS"] == expected
