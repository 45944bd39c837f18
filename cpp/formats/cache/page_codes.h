// Between codes of one byte each and the strips of a page (strips.h).
#pragma once

#include "formats/cache/coded_page.h"

namespace kve {

// Codes of rows of a page: that of (token, channel) is at token * token_stride + channel *
// channel_stride, and one of the strides is 1. Channels are rounded up to 16, with codes 0 past the
// width.
struct PageCodes {
  uint8_t* data;
  int64_t token_stride;
  int64_t channel_stride;
};

KVE_HD int padded_width(int width) { return (width + 15) / 16 * 16; }

// The 64 codes of a cell: lane l, step i of what begins at `from`.
KVE_HD void take_cell(const uint8_t* from, int64_t lane_stride, int64_t step_stride,
                      uint8_t* cell) {
  if (step_stride == 1) {
    for (int l = 0; l < 16; ++l) std::memcpy(cell + 4 * l, from + l * lane_stride, 4);
    return;
  }
  for (int l = 0; l < 16; ++l) {
    for (int i = 0; i < 4; ++i) cell[4 * l + i] = from[i * step_stride + l];
  }
}

// Bits [kAt, kAt + 8 / kPerByte) of the codes of a cell.
template <int kAt, int kPerByte>
KVE_HD void pack_plane(const uint8_t* cell, uint8_t* out) {
  constexpr int kWidth = 8 / kPerByte;
  constexpr int kBytes = kCellCodes / kPerByte;
  constexpr unsigned kMask = (1u << kWidth) - 1;
  for (int i = 0; i < kBytes; ++i) {
    unsigned byte = 0;
    for (int k = 0; k < kPerByte; ++k) {
      byte |= ((static_cast<unsigned>(cell[k * kBytes + i]) >> kAt) & kMask) << (k * kWidth);
    }
    out[i] = static_cast<uint8_t>(byte);
  }
}

// Bit kAt of the codes of a cell.
template <int kAt>
KVE_HD void pack_bits(const uint8_t* cell, uint8_t* out) {
  for (int i = 0; i < kCellCodes / 8; ++i) {
    uint64_t codes = 0;
    std::memcpy(&codes, cell + 8 * i, sizeof(codes));
    // The bits of eight bytes meet in the highest byte of the product.
    const uint64_t bits = (codes >> kAt) & 0x0101010101010101u;
    out[i] = static_cast<uint8_t>((bits * 0x0102040810204080u) >> 56);
  }
}

template <int kBits>
KVE_HD void pack_cell(const uint8_t* codes, int cell, uint8_t* strip) {
  if constexpr (kBits == 8) {
    std::memcpy(strip + cell * 64, codes, 64);
    return;
  }
  if constexpr ((kBits & 4) != 0) pack_plane<0, 2>(codes, strip + cell * 32);
  uint8_t* pairs = strip + (kBits & 4) * 32;
  if constexpr ((kBits & 2) != 0) pack_plane<kBits & 4, 4>(codes, pairs + cell * 16);
  uint8_t* bits = pairs + (kBits & 2) * 32;
  if constexpr ((kBits & 1) != 0) pack_bits<kBits & 6>(codes, bits + cell * 8);
}

KVE_HD void pack_cell(const uint8_t* codes, int bits, int cell, std::byte* strip) {
  auto* out = reinterpret_cast<uint8_t*>(strip);
  switch (bits) {
    case 1:
      return pack_cell<1>(codes, cell, out);
    case 2:
      return pack_cell<2>(codes, cell, out);
    case 3:
      return pack_cell<3>(codes, cell, out);
    case 4:
      return pack_cell<4>(codes, cell, out);
    case 5:
      return pack_cell<5>(codes, cell, out);
    case 6:
      return pack_cell<6>(codes, cell, out);
    case 7:
      return pack_cell<7>(codes, cell, out);
    default:
      return pack_cell<8>(codes, cell, out);
  }
}

// The inverse of pack_cell.
template <int kBits>
KVE_HD void unpack_cell(const uint8_t* strip, int cell, uint8_t* codes) {
  if constexpr (kBits == 8) {
    std::memcpy(codes, strip + cell * 64, 64);
    return;
  }
  std::memset(codes, 0, kCellCodes);
  if constexpr ((kBits & 4) != 0) {
    const uint8_t* in = strip + cell * 32;
    for (int i = 0; i < 32; ++i) {
      codes[i] = in[i] & 15u;
      codes[i + 32] = static_cast<uint8_t>(in[i] >> 4);
    }
  }
  const uint8_t* pairs = strip + (kBits & 4) * 32;
  if constexpr ((kBits & 2) != 0) {
    const uint8_t* in = pairs + cell * 16;
    for (int k = 0; k < 4; ++k) {
      for (int i = 0; i < 16; ++i) {
        codes[16 * k + i] |= static_cast<uint8_t>(((in[i] >> (2 * k)) & 3) << (kBits & 4));
      }
    }
  }
  const uint8_t* bits = pairs + (kBits & 2) * 32;
  if constexpr ((kBits & 1) != 0) {
    const uint8_t* in = bits + cell * 8;
    for (int i = 0; i < 8; ++i) {
      // Bit k of a byte, to the lowest bit of byte k.
      const uint64_t spread = (in[i] * 0x0101010101010101u) & 0x8040201008040201u;
      const uint64_t ones = ((spread + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
      uint64_t eight = 0;
      std::memcpy(&eight, codes + 8 * i, sizeof(eight));
      eight |= ones << (kBits & 6);
      std::memcpy(codes + 8 * i, &eight, sizeof(eight));
    }
  }
}

KVE_HD void unpack_cell(const std::byte* strip, int bits, int cell, uint8_t* codes) {
  const auto* in = reinterpret_cast<const uint8_t*>(strip);
  switch (bits) {
    case 0:
      std::memset(codes, 0, kCellCodes);
      return;
    case 1:
      return unpack_cell<1>(in, cell, codes);
    case 2:
      return unpack_cell<2>(in, cell, codes);
    case 3:
      return unpack_cell<3>(in, cell, codes);
    case 4:
      return unpack_cell<4>(in, cell, codes);
    case 5:
      return unpack_cell<5>(in, cell, codes);
    case 6:
      return unpack_cell<6>(in, cell, codes);
    case 7:
      return unpack_cell<7>(in, cell, codes);
    default:
      return unpack_cell<8>(in, cell, codes);
  }
}

// Writes the codes of 16 tokens from `token` on, a multiple of 16, whose codes begin at `codes`, to
// strip s, which begins at `strip`.
KVE_HD void write_strip_block(const CodedPage& page, int s, int bits, const PageCodes& codes,
                              int token, std::byte* strip) {
  uint8_t cell[kCellCodes];
  if (!page.values) {
    take_cell(codes.data + 4 * s * codes.channel_stride, codes.token_stride, codes.channel_stride,
              cell);
    pack_cell(cell, bits, token / 16, strip);
  } else if (s % 4 == token / 16) {
    for (int c = 0; c < 4; ++c) {
      take_cell(codes.data + s / 4 * 16 * codes.channel_stride + 4 * c * codes.token_stride,
                codes.channel_stride, codes.token_stride, cell);
      pack_cell(cell, bits, c, strip);
    }
  }
}

// Replaces the four codes of one token of keys in a plane with `kPerByte` codes to a byte; `v` is
// the first one's place in its cell.
template <int kPerByte>
KVE_HD void put_four(uint8_t* plane, int v, uint32_t codes) {
  constexpr int kRun = kCellCodes / kPerByte;  // bytes of a cell
  constexpr uint32_t kMask = 0x01010101u * ((1u << (8 / kPerByte)) - 1);
  const int at = v / kRun * (8 / kPerByte);
  uint32_t word = 0;
  std::memcpy(&word, plane + v % kRun, sizeof(word));
  word = (word & ~(kMask << at)) | ((codes & kMask) << at);
  std::memcpy(plane + v % kRun, &word, sizeof(word));
}

// Writes the codes of channels 4 s to 4 s + 3, one to a byte, of one token to strip s of keys.
KVE_HD void write_key_codes(std::byte* strip, int bits, int token, uint32_t codes) {
  auto* plane = reinterpret_cast<uint8_t*>(strip);
  const int cell = token / 16;
  const int v = token % 16 * 4;
  if (bits == 8) return put_four<1>(plane + 64 * cell, v, codes);
  if ((bits & 4) != 0) {
    put_four<2>(plane + 32 * cell, v, codes);
    plane += 128;
    codes = (codes >> 4) & 0x0f0f0f0fu;
  }
  if ((bits & 2) != 0) {
    put_four<4>(plane + 16 * cell, v, codes);
    plane += 64;
    codes = (codes >> 2) & 0x3f3f3f3fu;
  }
  // The lowest bits of four bytes meet in the highest byte of the product.
  if ((bits & 1) != 0) {
    const uint32_t four = ((codes & 0x01010101u) * 0x01020408u) >> 24;
    put_bits(plane + 8 * cell + v / 8, v % 8, 4, four);
  }
}

// Writes the codes of one token to strip s, which begins at `strip`.
KVE_HD void write_strip_token(const CodedPage& page, int s, int bits, const PageCodes& codes,
                              int token, std::byte* strip) {
  uint8_t cell[kCellCodes];
  if (!page.values) {
    uint8_t four[4];
    for (int i = 0; i < 4; ++i) four[i] = codes.data[(4 * s + i) * codes.channel_stride];
    uint32_t word = 0;
    std::memcpy(&word, four, sizeof(word));
    write_key_codes(strip, bits, token, word);
  } else if (s % 4 == token / 16) {
    unpack_cell(strip, bits, token % 16 / 4, cell);
    for (int l = 0; l < 16; ++l) {
      cell[4 * l + token % 4] = codes.data[(s / 4 * 16 + l) * codes.channel_stride];
    }
    pack_cell(cell, bits, token % 16 / 4, strip);
  }
}

// How many of the rows [row, end) are written together: blocks of 16 where they are whole.
KVE_HD int rows_at_once(int row, int end) { return row % 16 == 0 && row + 16 <= end ? 16 : 1; }

// Writes the codes of rows [first_row, first_row + n_rows), the first of which begin `codes`, to
// strip s, which begins at `strip`.
KVE_HD void write_strip(const CodedPage& page, int s, PageCodes codes, int first_row, int n_rows,
                        std::byte* strip) {
  const int bits = bits_of_strip(page, s);
  const int end = first_row + n_rows;
  for (int row = first_row, n = 0; row < end; row += n, codes.data += n * codes.token_stride) {
    n = rows_at_once(row, end);
    (n > 1 ? write_strip_block : write_strip_token)(page, s, bits, codes, row, strip);
  }
}

// The same to all strips.
KVE_HD void write_codes(const CodedPage& page, PageCodes codes, int first_row, int n_rows,
                        std::byte* data) {
  const int end = first_row + n_rows;
  for (int row = first_row, n = 0; row < end; row += n, codes.data += n * codes.token_stride) {
    n = rows_at_once(row, end);
    std::byte* strip = data;
    for (int s = 0; s < n_strips(page) && bits_of_strip(page, s) > 0; ++s) {
      write_strip(page, s, codes, row, n, strip);
      strip += strip_bytes(bits_of_strip(page, s));
    }
  }
}

}  // namespace kve
