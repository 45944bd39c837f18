// kvengine-chat: talk to a GGUF model from one binary, with a compressed cache.
#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>

#include "chat/conversation.h"
#include "common/arguments.h"
#include "common/json.h"
#include "kvengine.h"

namespace {

// A second Ctrl-C within one answer ends the program at once.
std::atomic<int> g_interrupts{0};

extern "C" void on_interrupt(int) {
  if (g_interrupts.fetch_add(1) > 0) std::_Exit(tools::kInterrupted);
}

struct Options {
  std::string model, draft_model, prompt, file, system, chat_format, cache, key_type, value_type;
  kve::LoadOptions load;
  kve::SessionOptions session;
  kve::GenerateOptions generate;
  uint64_t seed = 0;
  int draft_max = -1;  // -1: 7 with a draft model, else 0
  bool json = false;
};

void add_options(CLI::App& app, Options& o) {
  kve::SamplingOptions& s = o.generate.sampling;
  app.set_version_flag("--version", std::string(kve::version()));
  app.add_option("-m,--model", o.model, "GGUF file (default: the model `kvengine pull` fetched)");
  app.add_option("-t,--threads", o.load.threads, "threads, 0 for all")->capture_default_str();
  app.add_option("-c,--ctx-size", o.session.n_ctx, "most tokens held, 0 for the model's own");
  app.add_option("-s,--seed", o.seed, "seed of the draws (default: a random one)");
  app.add_option("-p,--prompt", o.prompt, "answer this one message and leave");
  app.add_option("-f,--file", o.file, "the same, from a file");
  app.add_option("--system", o.system, "system message");
  app.add_option("--chat-format", o.chat_format, "built-in format instead of the model's own");
  app.add_option("--cache", o.cache, "cache spec, e.g. int4:group=32,tail=64");
  app.add_option("--ctk,--cache-type-k", o.key_type, "cache type of keys");
  app.add_option("--ctv,--cache-type-v", o.value_type, "cache type of values");
  app.add_option("--device", o.load.device, "cpu, cuda, cuda:cache=SIZE or auto")
      ->capture_default_str();
  app.add_flag("!--no-repack", o.load.repack, "read weights as they lie in the file");
  app.add_flag("--exact", o.session.exact, "f32 activations, reference kernels");
  app.add_option("-n,--n-predict", o.generate.max_tokens,
                 "most tokens of an answer, -1 for no limit");
  app.add_option("--temp", s.temperature, "temperature, 0 for greedy")->capture_default_str();
  app.add_option("--top-k", s.top_k, "0: off")->capture_default_str();
  app.add_option("--top-p", s.top_p, "1: off")->capture_default_str();
  app.add_option("--min-p", s.min_p, "0: off")->capture_default_str();
  app.add_option("--typical", s.typical_p, "1: off")->capture_default_str();
  app.add_option("--repeat-penalty", s.repeat_penalty, "1: off")->capture_default_str();
  app.add_option("--repeat-last-n", s.repeat_last_n, "")->capture_default_str();
  app.add_option("--presence-penalty", s.presence_penalty, "")->capture_default_str();
  app.add_option("--frequency-penalty", s.frequency_penalty, "")->capture_default_str();
  app.add_option("--stop", o.generate.stop, "stop string (repeatable)")->allow_extra_args(false);
  app.add_option("--draft-max,--draft", o.draft_max,
                 "guess up to this many tokens at a time, which changes the speed only; 0: none")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--md,--model-draft", o.draft_model,
                 "a smaller model with the same vocabulary that guesses, instead of prompt lookup");
  app.add_flag("--json", o.json, "one JSON document (with -p or -f)");
}

std::string read_prompt(const Options& o) {
  if (o.file.empty()) return o.prompt;
  std::ifstream in(o.file, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) throw kve::IoError(kve::message(o.file, ": could not be read"));
  return text.str();
}

std::string cache_line(const kve::CacheStats& stats) {
  std::ostringstream line;
  line << "cache " << stats.spec << ": " << tools::human_bytes(stats.bytes) << " for "
       << stats.tokens_seen << " tokens (f16: " << tools::human_bytes(stats.f16_bytes) << ")";
  return line.str();
}

int answer_once(const Options& o, kve::Session& session, tools::Conversation& conversation) {
  const std::string message = read_prompt(o);
  if (message.empty()) throw kve::ConfigError("prompt: expected some text, found none");
  const auto show = [&](std::string_view text) {
    if (!o.json) std::cout << text << std::flush;
  };
  const tools::Answer a =
      conversation.ask(message, o.generate, show, [] { return g_interrupts.load() > 0; });
  const kve::CacheStats stats = session.cache_stats();
  const auto rate = [](size_t n, double seconds) {
    return seconds > 0 ? static_cast<double>(n) / seconds : 0.0;
  };
  const double prompt_tps = rate(static_cast<size_t>(a.prompt_tokens), a.prompt_seconds);
  const double decode_tps = rate(a.tokens.size(), a.decode_seconds);
  if (o.json) {
    std::cout << tools::JsonObject()
                     .add("text", a.text)
                     .add_raw("tokens", tools::json_array(a.tokens))
                     .add("finish_reason", a.finish_reason)
                     .add("prompt_tokens", a.prompt_tokens)
                     .add("prompt_tps", prompt_tps)
                     .add("decode_tps", decode_tps)
                     .add("drafted", a.drafted_tokens)
                     .add("accepted", a.accepted_tokens)
                     .add_raw("cache", tools::json_cache(stats))
                     .add("peak_rss_bytes", kve::peak_resident_bytes())
                     .str()
              << '\n';
  } else {
    std::cout << '\n';
    std::cerr << cache_line(stats) << "; prompt " << static_cast<int>(prompt_tps)
              << " tokens/s, answer " << static_cast<int>(decode_tps) << " tokens/s";
    if (a.drafted_tokens > 0) {
      std::cerr << ", " << a.accepted_tokens << " of " << a.drafted_tokens << " guesses right";
    }
    std::cerr << '\n';
  }
  return a.finish_reason == "cancelled" ? tools::kInterrupted : tools::kDone;
}

int talk(const Options& o, kve::Session& session, tools::Conversation& conversation) {
  std::cerr << "format " << conversation.format_name()
            << "; /reset forgets, /stats shows the cache, Ctrl-C stops an answer, Ctrl-D leaves\n";
  for (std::string line; std::cerr << "> " && std::getline(std::cin, line);) {
    if (line.empty()) continue;
    if (line == "/reset") {
      conversation.reset();
    } else if (line == "/stats") {
      std::cerr << cache_line(session.cache_stats()) << '\n';
    } else if (line == "/exit" || line == "/quit") {
      break;
    } else {
      g_interrupts = 0;
      try {
        conversation.ask(
            line, o.generate, [](std::string_view text) { std::cout << text << std::flush; },
            [] { return g_interrupts.load() > 0; });
        std::cout << '\n';
      } catch (const kve::Error& error) {
        std::cerr << error.what() << '\n';
      }
      g_interrupts = 0;
    }
  }
  std::cerr << '\n';
  return tools::kDone;
}

kve::DraftOptions draft_options(const Options& o, const kve::Session& session) {
  kve::DraftOptions draft;
  draft.max_tokens = o.draft_max >= 0 ? o.draft_max : o.draft_model.empty() ? 0 : 7;
  if (o.draft_model.empty() || draft.max_tokens == 0) return draft;
  const auto model = kve::Model::load(o.draft_model, o.load);
  kve::SessionOptions options;
  options.n_ctx = session.n_ctx();
  options.exact = o.session.exact;
  draft.session = std::make_shared<kve::Session>(model->session(options));
  return draft;
}

int run(Options& o, bool seeded) {
  o.generate.sampling.seed = seeded ? o.seed : std::random_device{}();
  o.session.cache = tools::cache_spec(o.cache, o.key_type, o.value_type);
  o.generate.sampling.validate();
  const auto model = kve::Model::load(tools::model_path(o.model), o.load);
  tools::tell_device("kvengine-chat", *model);
  kve::Session session = model->session(o.session);
  tools::tell_warnings("kvengine-chat", *model, o.session.cache);
  o.generate.draft = draft_options(o, session);
  tools::Conversation conversation(session, o.chat_format, o.system);
  const bool once = !o.prompt.empty() || !o.file.empty();
  if (o.json && !once) throw kve::ConfigError("--json: expected -p or -f beside it, found neither");
  return once ? answer_once(o, session, conversation) : talk(o, session, conversation);
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, on_interrupt);
  CLI::App app("Chat with a GGUF model whose key/value cache is kept compressed.", "kvengine-chat");
  Options options;
  add_options(app, options);
  try {
    app.parse(tools::normalised_arguments(argc, argv));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::cerr << "kvengine-chat: " << error.what() << " (see --help)\n";
    return tools::kBadInput;
  }
  if (app.count("--prompt") > 0 && options.prompt.empty() && options.file.empty()) {
    std::cerr << "kvengine-chat: prompt: expected some text, found none\n";
    return tools::kBadInput;
  }
  return tools::report_errors("kvengine-chat",
                              [&] { return run(options, app.count("--seed") > 0); });
}
