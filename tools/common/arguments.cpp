#include "common/arguments.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>

namespace tools {
namespace {

constexpr std::string_view kDefaultModel = "SmolLM2-135M-Instruct.Q4_1.gguf";

std::filesystem::path home_folder() {
  if (const char* home = std::getenv("KVENGINE_HOME"); home != nullptr && *home != '\0')
    return home;
  const char* user = std::getenv("HOME");
  return std::filesystem::path(user != nullptr ? user : ".") / ".cache" / "kvengine";
}

}  // namespace

std::vector<std::string> normalised_arguments(int argc, char** argv) {
  std::vector<std::string> arguments;
  for (int i = argc - 1; i >= 1; --i) {
    std::string argument = argv[i];
    for (const char* known : {"-ctk", "-ctv", "-np", "-md"}) {
      if (argument == known) argument.insert(0, "-");
    }
    arguments.push_back(std::move(argument));
  }
  return arguments;
}

std::string model_path(const std::string& given) {
  if (!given.empty()) return given;
  const std::filesystem::path path = home_folder() / kDefaultModel;
  if (!std::filesystem::exists(path)) {
    throw kve::ConfigError(kve::message("model: expected -m FILE.gguf, or the default model at ",
                                        path.string(),
                                        " (the Python command `kvengine pull` fetches it)"));
  }
  return path.string();
}

kve::CacheSpec cache_spec(const std::string& spec, const std::string& key_type,
                          const std::string& value_type) {
  if (key_type.empty() && value_type.empty()) {
    return spec.empty() ? kve::CacheSpec() : kve::CacheSpec::parse(spec);
  }
  if (!spec.empty()) {
    throw kve::ConfigError("cache: expected --cache or -ctk/-ctv, found both");
  }
  const std::string key = key_type.empty() ? "f16" : key_type;
  const std::string value = value_type.empty() ? "f16" : value_type;
  return kve::CacheSpec::parse("k=" + key + "+v=" + value);
}

void tell_device(std::string_view program, const kve::Model& model) {
  if (!model.device_note().empty()) std::cerr << program << ": " << model.device_note() << '\n';
}

void tell_warnings(std::string_view program, const kve::Model& model, const kve::CacheSpec& cache) {
  for (const std::string& text : model.cache_warnings(cache)) {
    std::cerr << program << ": warning: " << text << '\n';
  }
}

int report_errors(std::string_view program, const std::function<int()>& body) {
  try {
    return body();
  } catch (const kve::DeviceError& error) {
    std::cerr << program << ": " << error.what() << '\n';
    return kFailed;
  } catch (const kve::Error& error) {
    std::cerr << program << ": " << error.what() << '\n';
    return kBadInput;
  } catch (const std::bad_alloc&) {
    std::cerr << program << ": out of memory\n";
    return kFailed;
  } catch (const std::exception& error) {
    std::cerr << program << ": " << error.what() << '\n';
    return kFailed;
  }
}

std::string human_bytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

}  // namespace tools
