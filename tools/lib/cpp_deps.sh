# Sets `deps` to a prefix that holds GoogleTest and CLI11 where the system lacks them. On
# Debian-like machines the packages are downloaded and unpacked inside .venv, without root.

deps=$venv/deps

have_header() { printf '#include <%s>\n' "$1" | ${CXX:-c++} -std=c++20 -x c++ -I"$deps/usr/include" -fsyntax-only - 2>/dev/null; }

fetch_deb() {
  local state=$venv/apt
  mkdir -p "$deps" "$state/lists/partial" "$state/archives/partial"
  local options=(-o "Dir::State::Lists=$state/lists" -o "Dir::Cache=$state" -o "Debug::NoLocking=1"
    -o "APT::Sandbox::User=$(id -un)")
  command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 ||
    fail "$1 is missing and this is no Debian-like machine: install $2 with its package manager"
  [ -n "$(ls "$state"/lists/*Packages* 2>/dev/null)" ] ||
    apt-get "${options[@]}" update -qq >"$state/log" 2>&1 ||
    fail "$1 is missing and apt-get update failed (see $state/log). Install it: apt-get install $1"
  (cd "$state" && apt-get "${options[@]}" download -qq "$1" >>"$state/log" 2>&1) ||
    fail "$1 is missing and could not be downloaded (see $state/log). Install it: apt-get install $1"
  dpkg-deb -x "$state/$1"_*.deb "$deps"
}

have_header gtest/gtest.h || { note "fetching GoogleTest"; fetch_deb libgtest-dev GoogleTest; }
have_header CLI/CLI.hpp || { note "fetching CLI11"; fetch_deb libcli11-dev CLI11; }
