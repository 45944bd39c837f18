// What the programs' command lines have in common.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kvengine.h"

namespace tools {

// Exit statuses: the same in every program.
inline constexpr int kDone = 0;
inline constexpr int kFailed = 1;
inline constexpr int kBadInput = 2;
inline constexpr int kInterrupted = 130;

// argv as CLI11 understands it: llama.cpp's one-dash long options (-ctk) get their second dash.
// Last argument first, as CLI::App::parse(std::vector) wants it.
std::vector<std::string> normalised_arguments(int argc, char** argv);

// `given`, or else the default model in $KVENGINE_HOME (~/.cache/kvengine). Throws ConfigError
// saying how to get it when it is not there.
std::string model_path(const std::string& given);

// `spec`, or one made of -ctk and -ctv, or f16.
kve::CacheSpec cache_spec(const std::string& spec, const std::string& key_type,
                          const std::string& value_type);

// Tells on standard error why the CPU computes, where `--device auto` found nothing else.
void tell_device(std::string_view program, const kve::Model& model);

// Tells on standard error what a cache is known to do to models like this one.
void tell_warnings(std::string_view program, const kve::Model& model, const kve::CacheSpec& cache);

// Runs a program's body, turning errors into one line on standard error and an exit status.
int report_errors(std::string_view program, const std::function<int()>& body);

// "12.3 MiB"
std::string human_bytes(int64_t bytes);

}  // namespace tools
