# Shared by tools/quickstart and tools/check: finds what the machine has, says plainly what is
# missing, and keeps everything it installs inside the checkout's .venv.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$root/.venv
python=$venv/bin/python

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  exit 1
}

note() { printf '== %s\n' "$1" >&2; }

# A Python of at least 3.10, with venv and the headers that the native module needs.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      base_python=$candidate
      break
    fi
  done
  [ -n "${base_python:-}" ] ||
    fail "Python 3.10 or newer is missing. Debian/Ubuntu: apt-get install python3 python3-venv python3-dev"
  "$base_python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "Python's venv module is missing. Debian/Ubuntu: apt-get install python3-venv"
  "$base_python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
    fail "Python's C headers (Python.h) are missing. Debian/Ubuntu: apt-get install python3-dev"
}

find_compiler() {
  local compiler=${CXX:-c++}
  command -v "$compiler" >/dev/null 2>&1 || compiler=g++
  command -v "$compiler" >/dev/null 2>&1 ||
    fail "a C++20 compiler is missing. Debian/Ubuntu: apt-get install g++ (12 or newer)"
  printf '#include <span>\n#include <bit>\nint main() { return std::bit_width(0u); }\n' |
    "$compiler" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null ||
    fail "$compiler does not compile C++20. Debian/Ubuntu: apt-get install g++ (12 or newer)"
}

make_venv() {
  if [ ! -x "$python" ] || ! "$python" -c '' 2>/dev/null; then
    note "making .venv"
    "$base_python" -m venv --clear "$venv" || fail "could not make a virtual environment in $venv"
  fi
}

# pip_install LABEL ARGS...: quiet unless it fails; then says what to look at.
pip_install() {
  local label=$1 log=$venv/pip.log
  shift
  if ! "$python" -m pip install --disable-pip-version-check --quiet "$@" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    fail "installing $label failed (see above, or $log). Is a Python package index reachable? pip reads its address from its own configuration."
  fi
}

# newer_than STAMP PATHS...: whether anything below the paths changed after the stamp was written.
newer_than() {
  local stamp=$1
  shift
  [ ! -e "$stamp" ] || [ -n "$(find "$@" -newer "$stamp" -not -name '*.pyc' -not -name '__pycache__' -print -quit 2>/dev/null)" ]
}

# Builds and installs the package into .venv unless it is already there and up to date.
install_package() {
  local stamp=$venv/kvengine.installed
  if newer_than "$stamp" "$root/cpp" "$root/bindings" "$root/python" "$root/CMakeLists.txt" \
    "$root/pyproject.toml"; then
    note "building and installing kvengine (a few minutes the first time)"
    touch "$stamp.new"
    pip_install kvengine "$root"
    mv "$stamp.new" "$stamp"
  fi
}
