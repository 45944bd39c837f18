"""Writes tests/fixtures/gguf/golden.gguf with the `gguf` package (0.19), the reference writer.

Run it from the root of the checkout when the list of values below changes.
"""

from pathlib import Path

import gguf
import numpy as np

OUTPUT = Path(__file__).parent.parent / "fixtures" / "gguf" / "golden.gguf"


def main() -> None:
    """Write one file that holds every kind of metadata and two tensors."""
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(OUTPUT, "llama")
    writer.add_uint8("golden.u8", 255)
    writer.add_int8("golden.i8", -128)
    writer.add_uint16("golden.u16", 65535)
    writer.add_int16("golden.i16", -32768)
    writer.add_uint32("golden.u32", 4294967295)
    writer.add_int32("golden.i32", -2147483648)
    writer.add_float32("golden.f32", 0.1)
    writer.add_uint64("golden.u64", 18446744073709551615)
    writer.add_int64("golden.i64", -1234567890123456789)
    writer.add_float64("golden.f64", 0.1)
    writer.add_bool("golden.boolean", True)
    writer.add_string("golden.string", "naïve 🙂")
    writer.add_array("golden.strings", ["a", "", "bc"])
    writer.add_array("golden.integers", [-1, 0, 70000])
    writer.add_array("golden.floats", [0.5, -1.25])
    writer.add_array("golden.booleans", [True, False])
    writer.add_tensor("matrix", np.arange(12, dtype=np.float32).reshape(3, 4))
    values = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("quantized", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
