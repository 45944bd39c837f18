#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include "bindings.h"

namespace kve::python {
namespace {

// Nothing in the class can be changed; pybind11 wants a holder of the plain type.
std::shared_ptr<Tokenizer> from_gguf(const GgufFile& file) {
  return std::const_pointer_cast<Tokenizer>(
      std::shared_ptr<const Tokenizer>(Tokenizer::create(read_vocabulary(file))));
}

std::shared_ptr<Tokenizer> from_file(const std::filesystem::path& path) {
  const py::gil_scoped_release release;
  return from_gguf(*GgufFile::open(path));
}

py::object optional_token(Token token) {
  if (token == kNoToken) return py::none();
  return py::int_(token);
}

std::vector<Token> encode(const Tokenizer& tokenizer, const py::object& text, bool add_special,
                          bool parse_special) {
  const std::string bytes = text_bytes(text);
  const py::gil_scoped_release release;
  return tokenizer.encode(bytes, {.add_special = add_special, .parse_special = parse_special});
}

py::bytes decode_bytes(const Tokenizer& tokenizer, const py::object& tokens, bool render_special,
                       bool remove_space_prefix) {
  return tokenizer.decode(token_list(tokens), {.render_special = render_special,
                                               .remove_space_prefix = remove_space_prefix});
}

py::dict special_tokens(const Tokenizer& tokenizer) {
  const SpecialTokens& special = tokenizer.vocabulary().special;
  const std::pair<const char*, Token> all[] = {
      {"bos", special.bos},
      {"eos", special.eos},
      {"eot", special.eot},
      {"eom", special.eom},
      {"unk", special.unk},
      {"sep", special.sep},
      {"pad", special.pad},
      {"cls", special.cls},
      {"mask", special.mask},
      {"fim_prefix", special.fim_prefix},
      {"fim_suffix", special.fim_suffix},
      {"fim_middle", special.fim_middle},
      {"fim_pad", special.fim_pad},
      {"fim_repo", special.fim_repo},
      {"fim_separator", special.fim_separator},
  };
  py::dict result;
  for (const auto& [name, token] : all) {
    if (token != kNoToken) result[name] = token;
  }
  return result;
}

void check_token(const Tokenizer& tokenizer, Token token) {
  if (token < 0 || token >= tokenizer.vocab_size()) {
    throw ConfigError(
        message("token: expected an id from 0 to ", tokenizer.vocab_size() - 1, ", found ", token));
  }
}

}  // namespace

void bind_tokenizer(py::module_& module) {
  py::class_<Tokenizer, std::shared_ptr<Tokenizer>> tokenizer(
      module, "Tokenizer", "Text into tokens and back. Immutable; threads may share it.");
  tokenizer.def_static("from_file", &from_file, py::arg("path"),
                       R"(The tokenizer of a GGUF file, which needs no tensors.

Raises IoError, FormatError, UnsupportedError (no or an unknown tokenizer).)");
  tokenizer.def_static("from_gguf", &from_gguf, py::arg("file"),
                       "The tokenizer of an opened GgufFile. Raises as from_file().");
  tokenizer.def("encode", &encode, py::arg("text"), py::arg("add_special") = true,
                py::arg("parse_special") = false,
                R"(Token ids of a str or of any bytes.

add_special: surround the text with the BOS/EOS/CLS/SEP tokens that the vocabulary asks for.
parse_special: text that spells a control token ('<|im_start|>') becomes that token.)");
  tokenizer.def("decode_bytes", &decode_bytes, py::arg("tokens"), py::kw_only(),
                py::arg("render_special") = false, py::arg("remove_space_prefix") = true,
                R"(The bytes that tokens stand for; they need not be UTF-8.

render_special: spell control tokens out instead of dropping them.
remove_space_prefix: drop the space that encode() put before the first word.
Raises ConfigError for an id that is not in the vocabulary.)");
  tokenizer.def(
      "decode",
      [](const Tokenizer& self, const py::object& tokens, bool render_special,
         bool remove_space_prefix) {
        return decode_bytes(self, tokens, render_special, remove_space_prefix)
            .attr("decode")("utf-8", "replace");
      },
      py::arg("tokens"), py::kw_only(), py::arg("render_special") = false,
      py::arg("remove_space_prefix") = true,
      "As decode_bytes(), as a str in which bytes that are not UTF-8 are U+FFFD.");
  tokenizer.def(
      "piece",
      [](const Tokenizer& self, Token token, bool render_special) {
        return py::bytes(self.piece(token, render_special));
      },
      py::arg("token"), py::arg("render_special") = true,
      "The bytes one token stands for. Raises ConfigError for an unknown id.");
  tokenizer.def(
      "token_text",
      [](const Tokenizer& self, Token token) {
        check_token(self, token);
        return text_str(self.vocabulary().pieces[static_cast<size_t>(token)]);
      },
      py::arg("token"),
      "The entry as the vocabulary stores it ('Ġthe', '▁the'). Raises ConfigError.");
  tokenizer.def(
      "find",
      [](const Tokenizer& self, const py::object& piece) {
        return optional_token(self.find(text_bytes(piece)));
      },
      py::arg("piece"), "The id of an entry, by its exact stored text; None if there is none.");
  tokenizer.def("is_end_of_generation", &Tokenizer::is_end_of_generation, py::arg("token"),
                "Whether a token ends an answer (EOS, EOT, EOM and their kin).");
  tokenizer.def_property_readonly("vocab_size", &Tokenizer::vocab_size, "Number of tokens.");
  tokenizer.def_property_readonly(
      "bos", [](const Tokenizer& self) { return optional_token(self.bos()); },
      "Id of the token that begins a text, or None.");
  tokenizer.def_property_readonly(
      "eos", [](const Tokenizer& self) { return optional_token(self.eos()); },
      "Id of the token that ends a text, or None.");
  tokenizer.def_property_readonly("add_bos", &Tokenizer::add_bos,
                                  "Whether encode() puts BOS first when add_special is set.");
  tokenizer.def_property_readonly("add_eos", &Tokenizer::add_eos,
                                  "Whether encode() puts EOS last when add_special is set.");
  tokenizer.def_property_readonly("special_tokens", &special_tokens,
                                  "Ids of the named tokens that exist: {'bos': 1, 'eos': 2, ...}.");
  tokenizer.def_property_readonly(
      "model", [](const Tokenizer& self) { return text_str(self.vocabulary().model); },
      "tokenizer.ggml.model: 'gpt2', 'llama', ...");
  tokenizer.def_property_readonly(
      "pre", [](const Tokenizer& self) { return text_str(self.vocabulary().pre); },
      "tokenizer.ggml.pre: the pre-tokenizer, or ''.");
  tokenizer.def("__len__", &Tokenizer::vocab_size);
  tokenizer.def("__repr__", [](const Tokenizer& self) {
    return text_str(message("<Tokenizer ", self.vocabulary().model, "/", self.vocabulary().pre,
                            ", ", self.vocab_size(), " tokens>"));
  });
}

}  // namespace kve::python
