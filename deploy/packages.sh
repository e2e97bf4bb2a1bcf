# Packages the build needs, how to get them, and the build itself; sourced by deploy/quickstart, deploy/test and .ci/run.
# Debian 12 and Ubuntu 24.04 call them by the same names.

BUILD_PACKAGES=(
  g++ cmake ninja-build pkg-config
  libgrpc++-dev libgrpc-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev
  libssl-dev libzstd-dev liburing-dev libspdlog-dev libfmt-dev nlohmann-json3-dev
)
RUN_PACKAGES=(python3)
TEST_PACKAGES=(libgtest-dev libgmock-dev python3-venv ca-certificates ccache git)

say() { printf '== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

missing_packages() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s\n' "$package"
  done
}

# ensure_packages INSTALL PACKAGE...: with INSTALL=1 installs what is missing (as root or through sudo),
# with INSTALL=0 stops with the command to run.
ensure_packages() {
  local install=$1 missing as_root=()
  shift
  command -v dpkg-query >/dev/null || {
    say "not a Debian or Ubuntu system: taking the packages as installed ($*)"
    return 0
  }
  mapfile -t missing < <(missing_packages "$@")
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ "$install" != 1 ]; then
    die "packages are missing; run: apt-get install ${missing[*]}"
  fi
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "packages are missing and this is neither root nor a system with sudo; as root run: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing ${missing[*]}"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq </dev/null ||
    say "apt-get update failed; going on with the package lists that are here"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null ||
    die "apt-get could not install: ${missing[*]}"
}

# configure_and_build DIR JOBS CMAKE_ARGUMENT...: run in the repository's root; quiet unless it fails.
configure_and_build() {
  local dir=$1 jobs=$2 log
  shift 2
  mkdir -p "$dir"
  log=$dir/build.log
  if ! { cmake "$@" -S . -B "$dir" && cmake --build "$dir" --parallel "$jobs"; } >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    die "the build failed; its whole output is in $log"
  fi
}
