// The public C++ API. Programs and bindings include this header and nothing else.
//
//   auto model = kve::Model::load("model.gguf");
//   kve::Session session = model->session({.cache = kve::CacheSpec::parse("int4:group=32")});
//   kve::Generation answer(session, model->tokenizer().encode("2 + 2 ="), {.max_tokens = 16});
//   while (auto piece = answer.next()) std::cout << piece->text << std::flush;
//
// Everything throws kve::Error or one of its subclasses (base/error.h), with one sentence that says
// what, where, what was expected and what was found.
#pragma once

#include "base/error.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/span.h"
#include "base/token.h"
#include "cache/kv_cache.h"
#include "cache/spec.h"
#include "cache/stats.h"
#include "engine/batch_generation.h"
#include "engine/forward_batch.h"
#include "engine/generation.h"
#include "engine/model.h"
#include "engine/session.h"
#include "formats/weight_formats.h"
#include "gguf/gguf_file.h"
#include "gguf/gguf_writer.h"
#include "kernels/machine_limits.h"
#include "sampling/sampler.h"
#include "text/chat_format.h"
#include "text/tokenizer.h"

namespace kve {

// "0.1.0"
std::string_view version();

}  // namespace kve
