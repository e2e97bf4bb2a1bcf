// How the command line shows its results.
#ifndef LATTICEKV_CLIENT_CLI_OUTPUT_H_
#define LATTICEKV_CLIENT_CLI_OUTPUT_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/codec/codec.h"
#include "core/layout/layout.h"

namespace latticekv {

using Json = nlohmann::ordered_json;

// Prints `json` to stdout; strings that are not UTF-8 are repaired.
void PrintJson(const Json& json);

// "5.2 MiB", "512 B".
std::string BytesText(uint64_t bytes);
// A number with `digits` decimals.
std::string Fixed(double value, int digits);
// "12 s", "3 min", "2 h", "5 d".
std::string DurationText(int64_t ms);
// raw / stored; 0 when nothing is stored.
double Ratio(uint64_t raw_bytes, uint64_t stored_bytes);

// "256", "256, 100 evicted".
std::string TokensText(uint64_t tokens, uint64_t evicted);
// "exact", "logit noise 0.187 nats, value error 0.214".
std::string QualityText(const Quality& quality);
Json QualityJson(const Quality& quality);
// "30 layers: k 3 x 64 f16 (neox, base 100000), v 3 x 64 f16".
std::string LayoutText(const Layout& layout);
Json LayoutJson(const Layout& layout);

// Name and value in two columns.
using Fields = std::vector<std::pair<std::string, std::string>>;
void PrintFields(const Fields& fields);

// Rows of equal length in columns as wide as they need; the first row is the heading.
void PrintTable(const std::vector<std::vector<std::string>>& rows);

// Prints such a table row by row, each as soon as it is known: columns are as wide as the heading,
// and as `widest`, which has a text of at least the width of each column's others.
class TablePrinter {
 public:
  TablePrinter(const std::vector<std::string>& heading, const std::vector<std::string>& widest);
  void Row(const std::vector<std::string>& row);

 private:
  std::vector<size_t> widths_;
};

// Quality of several blocks together: rms over their tokens.
class QualitySum {
 public:
  void Add(const Quality& quality, uint64_t tokens);
  Quality Result() const;

 private:
  struct Errors {
    double weight = 0, noise = 0, error = 0;
    void Add(double of, double logit_noise, double value_error);
  };
  Errors within_, coarse_;  // Quality says what is which
  bool exact_ = true, profiled_ = true, mass_scaled_ = false;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_OUTPUT_H_
