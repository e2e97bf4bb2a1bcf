#include "client/cli/output.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/src/layout_metadata.h"
#include "core/layout/rope.h"

namespace latticekv {
namespace {

std::string PlaneText(const PlaneSpec& plane) {
  std::string out = absl::StrCat(plane.name, " ", plane.heads, " x ", plane.head_dim, " ",
                                 std::string(DTypeName(plane.dtype)));
  if (plane.rope.style == RopeStyle::kNone) return out;
  absl::StrAppend(&out, " (", plane.rope.style == RopeStyle::kInterleaved ? "interleaved" : "neox",
                  ", base ", plane.rope.base);
  if (plane.rope.rotary_dims != plane.head_dim) {
    absl::StrAppend(&out, ", ", plane.rope.rotary_dims, " dims");
  }
  if (plane.rope.scaling.kind != RopeScalingKind::kNone) {
    absl::StrAppend(&out, ", scaled ", RopeScalingText(plane.rope.scaling));
  }
  return out + ")";
}

const char* RoleName(PlaneRole role) {
  switch (role) {
    case PlaneRole::kKey:
      return "key";
    case PlaneRole::kValue:
      return "value";
    default:
      return "opaque";
  }
}

}  // namespace

void PrintJson(const Json& json) {
  std::cout << json.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

std::string BytesText(uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string Fixed(double value, int digits) { return absl::StrFormat("%.*f", digits, value); }

std::string DurationText(int64_t ms) {
  const int64_t seconds = std::max<int64_t>(ms, 0) / 1000;
  if (seconds < 120) return absl::StrCat(seconds, " s");
  if (seconds < 2 * 3600) return absl::StrCat(seconds / 60, " min");
  if (seconds < 2 * 86400) return absl::StrCat(seconds / 3600, " h");
  return absl::StrCat(seconds / 86400, " d");
}

double Ratio(uint64_t raw_bytes, uint64_t stored_bytes) {
  return stored_bytes == 0 ? 0 : static_cast<double>(raw_bytes) / static_cast<double>(stored_bytes);
}

std::string TokensText(uint64_t tokens, uint64_t evicted) {
  if (evicted == 0) return absl::StrCat(tokens);
  return absl::StrCat(tokens, ", ", evicted, " evicted");
}

std::string QualityText(const Quality& quality) {
  if (quality.exact) return "exact";
  std::string out =
      absl::StrFormat(quality.profiled ? "logit noise %.4f nats, value error %.4f"
                                       : "key error %.4f (no query energy), value error %.4f",
                      quality.logit_noise, quality.value_error);
  if (quality.mass_scaled) {
    out += absl::StrFormat("; %.0f %% of the vectors, with little attention, %.4f and %.4f",
                           100 * quality.coarse_share, quality.coarse_logit_noise,
                           quality.coarse_value_error);
  }
  return out;
}

Json QualityJson(const Quality& quality) {
  Json out = {{"exact", quality.exact},
              {"profiled", quality.profiled},
              {"logit_noise", quality.logit_noise},
              {"value_error", quality.value_error}};
  if (quality.mass_scaled) {
    out["coarse"] = {{"share", quality.coarse_share},
                     {"logit_noise", quality.coarse_logit_noise},
                     {"value_error", quality.coarse_value_error}};
  }
  return out;
}

std::string LayoutText(const Layout& layout) {
  std::string out = absl::StrCat(layout.layers.size(), " layers: ");
  for (size_t p = 0; p < layout.layers.front().planes.size(); ++p) {
    absl::StrAppend(&out, p == 0 ? "" : ", ", PlaneText(layout.layers.front().planes[p]));
  }
  const bool equal = std::all_of(layout.layers.begin(), layout.layers.end(),
                                 [&](const LayerSpec& l) { return l == layout.layers.front(); });
  return equal ? out : out + "; other layers differ";
}

Json LayoutJson(const Layout& layout) {
  Json layers = Json::array();
  for (size_t l = 0; l < layout.layers.size();) {
    size_t end = l + 1;
    while (end < layout.layers.size() && layout.layers[end] == layout.layers[l]) ++end;
    Json planes = Json::array();
    for (const PlaneSpec& plane : layout.layers[l].planes) {
      Json json = {{"name", plane.name},
                   {"role", RoleName(plane.role)},
                   {"heads", plane.heads},
                   {"head_dim", plane.head_dim},
                   {"dtype", DTypeName(plane.dtype)}};
      if (plane.rope.style != RopeStyle::kNone) {
        json["rope_layout"] = plane.rope.style == RopeStyle::kInterleaved ? "interleaved" : "neox";
        json["rope_base"] = plane.rope.base;
        json["rope_dims"] = plane.rope.rotary_dims;
        if (plane.rope.scaling.kind != RopeScalingKind::kNone) {
          json["rope_scaling"] = Json::parse(RopeScalingText(plane.rope.scaling));
          json["attention_factor"] = RopeAttentionFactor(plane.rope);
        }
      }
      planes.push_back(std::move(json));
    }
    layers.push_back({{"repeat", end - l}, {"planes", std::move(planes)}});
    l = end;
  }
  return {{"model", layout.model},
          {"revision", layout.revision},
          {"layer_count", layout.layers.size()},
          {"layers", std::move(layers)}};
}

void PrintFields(const Fields& fields) {
  size_t width = 0;
  for (const auto& [name, value] : fields) width = std::max(width, name.size());
  for (const auto& [name, value] : fields) {
    std::string padded = name;
    padded.resize(width, ' ');
    std::cout << padded << "  " << value << "\n";
  }
}

void PrintTable(const std::vector<std::vector<std::string>>& rows) {
  if (rows.empty()) return;
  std::vector<std::string> widest = rows.front();
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) {
      if (row[c].size() > widest[c].size()) widest[c] = row[c];
    }
  }
  TablePrinter printer(rows.front(), widest);
  for (size_t i = 1; i < rows.size(); ++i) printer.Row(rows[i]);
}

TablePrinter::TablePrinter(const std::vector<std::string>& heading,
                           const std::vector<std::string>& widest) {
  for (size_t c = 0; c < heading.size(); ++c) {
    widths_.push_back(std::max(heading[c].size(), widest[c].size()));
  }
  Row(heading);
}

void TablePrinter::Row(const std::vector<std::string>& row) {
  std::string line;
  for (size_t c = 0; c < row.size(); ++c) {
    line += row[c];
    if (c + 1 < row.size()) line.resize(line.size() + widths_[c] + 2 - row[c].size(), ' ');
  }
  std::cout << line << std::endl;  // now, where nobody waits for more
}

void QualitySum::Add(const Quality& quality, uint64_t tokens) {
  exact_ &= quality.exact;
  // What is exact has no error, with a profile or without.
  profiled_ &= quality.profiled || quality.exact;
  mass_scaled_ |= quality.mass_scaled;
  const double all = static_cast<double>(tokens), coarse = all * quality.coarse_share;
  within_.Add(all - coarse, quality.logit_noise, quality.value_error);
  coarse_.Add(coarse, quality.coarse_logit_noise, quality.coarse_value_error);
}

void QualitySum::Errors::Add(double of, double logit_noise, double value_error) {
  weight += of;
  noise += of * logit_noise * logit_noise;
  error += of * value_error * value_error;
}

Quality QualitySum::Result() const {
  const auto rms = [](double sum, double weight) {
    return weight > 0 ? std::sqrt(sum / weight) : 0;
  };
  Quality out;
  const double all = within_.weight + coarse_.weight;
  if (all == 0) return out;
  out.exact = exact_;
  out.profiled = profiled_ && !exact_;
  out.logit_noise = rms(within_.noise, within_.weight);
  out.value_error = rms(within_.error, within_.weight);
  out.mass_scaled = mass_scaled_;
  out.coarse_share = coarse_.weight / all;
  out.coarse_logit_noise = rms(coarse_.noise, coarse_.weight);
  out.coarse_value_error = rms(coarse_.error, coarse_.weight);
  return out;
}

}  // namespace latticekv
