#include "engine/session_file.h"

#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/mapped_file.h"
#include "gguf/byte_reader.h"

namespace kve {
namespace {

using gguf::ByteReader;

constexpr std::array<char, 8> kMagic = {'K', 'V', 'E', 'S', 'E', 'S', 'S', '\0'};
constexpr uint32_t kVersion = 1;

struct Header {
  std::array<char, 8> magic = kMagic;
  uint32_t version = kVersion;
  uint32_t reserved = 0;
  uint64_t fingerprint = 0;
  uint64_t payload_bytes = 0;
  uint64_t checksum = 0;  // of the payload, seeded with the fingerprint
};
static_assert(sizeof(Header) == 40);

class ByteWriter {
 public:
  template <class T>
  void number(const T& value) {
    append(std::as_bytes(std::span(&value, 1)));
  }
  template <class T>
  void array(std::span<const T> values) {
    number(static_cast<uint64_t>(values.size()));
    append(std::as_bytes(values));
  }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  void append(std::span<const std::byte> more) {
    bytes_.insert(bytes_.end(), more.begin(), more.end());
  }
  std::vector<std::byte> bytes_;
};

template <class T>
std::vector<T> read_array(ByteReader& in, std::string_view what) {
  const uint64_t n = in.count(INT32_MAX, sizeof(T), what);
  const auto bytes = in.take(n * sizeof(T), what);
  std::vector<T> values(static_cast<size_t>(n));
  if (n > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

Header read_header(ByteReader& in, uint64_t fingerprint) {
  if (in.remaining() < sizeof(Header)) {
    in.fail(message("expected a session file of at least ", sizeof(Header), " bytes, found ",
                    in.remaining()));
  }
  const auto header = in.number<Header>("header");
  if (header.magic != kMagic) {
    in.fail(message("expected a kvengine session (KVESESS), found ",
                    quoted({header.magic.data(), header.magic.size()})));
  }
  if (header.version == 0 || header.version > kVersion) {
    in.unsupported(message("session format version: expected at most ", kVersion, ", found ",
                           header.version, "; it was written by a newer kvengine"));
  }
  if (header.payload_bytes != in.remaining()) {
    in.fail(message("the session is damaged or cut short: expected ", header.payload_bytes,
                    " bytes after the header, found ", in.remaining()));
  }
  if (header.fingerprint != fingerprint) {
    throw ConfigError(message("session: expected one of this model (fingerprint ", std::hex,
                              fingerprint, "), found one of another (", header.fingerprint, ")"));
  }
  return header;
}

}  // namespace

void write_session_file(const std::filesystem::path& path, uint64_t fingerprint,
                        const SessionState& state) {
  ByteWriter payload;
  payload.number(int32_t{state.options.n_ctx});
  payload.number(int32_t{state.options.n_batch});
  payload.number(uint32_t{state.options.exact});
  const std::string spec = state.options.cache.str();
  payload.array(std::span<const char>(spec));
  payload.array(std::span<const Token>(state.tokens));
  payload.array(std::span<const float>(state.last_logits));
  payload.array(std::span<const std::byte>(state.cache));

  Header header;
  header.fingerprint = fingerprint;
  header.payload_bytes = payload.bytes().size();
  header.checksum = hash64(payload.bytes(), fingerprint);
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(&header, 1)));
  file.write(payload.bytes());
  file.commit();
}

SessionState read_session_file(const std::filesystem::path& path, uint64_t fingerprint) {
  const MappedFile file = MappedFile::open(path);
  const std::string name = path.string();
  ByteReader in(file.bytes(), name);
  const Header header = read_header(in, fingerprint);
  if (hash64(file.bytes().subspan(sizeof(Header)), fingerprint) != header.checksum) {
    in.fail("the session is damaged: its checksum does not match");
  }
  SessionState state;
  state.options.n_ctx = in.number<int32_t>("n_ctx");
  state.options.n_batch = in.number<int32_t>("n_batch");
  state.options.exact = in.number<uint32_t>("exact") != 0;
  const auto spec = read_array<char>(in, "cache spec");
  state.options.cache = CacheSpec::parse({spec.data(), spec.size()});
  state.tokens = read_array<Token>(in, "tokens");
  state.last_logits = read_array<float>(in, "logits");
  const auto cache = in.take(in.count(UINT64_MAX, 1, "cache"), "cache");
  state.cache.assign(cache.begin(), cache.end());
  if (in.remaining() != 0) in.fail(message("expected the end, found ", in.remaining(), " bytes"));
  return state;
}

}  // namespace kve
