// What a bundle's manifest.json says of one of its graphs, version 2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "error.hpp"
#include "json.hpp"
#include "sha256.hpp"
#include "tensor.hpp"

namespace intaglio {

// A dimension: a number, or a symbol as "batch"; of "4*time", `symbol` is time and `times` 4.
struct Dim {
  int64_t size = 0;
  std::string symbol;
  int64_t times = 1;
};

// What indices stay below: a number, the size of the axis `symbol`, or nothing.
struct Bound {
  std::optional<int64_t> number;
  std::string symbol;
};

struct TensorSpec {
  std::string name;
  const DType* dtype = nullptr;
  std::vector<Dim> shape;
  std::optional<double> fallback;      // what a step takes where the input is left out
  std::vector<Bound> below;            // of indices: one, or one for each column
  bool below_by_row = false;           // or for each row, of a matrix
};

enum class Layout { recurrent, conv, window, fixed_capacity, grow, prepared };

struct StateSpec {
  TensorSpec value;  // under the name of the graph's input
  std::string output;
  Layout layout = Layout::recurrent;
  size_t axis = 0;  // along which a cache holds tokens
  double initial = 0;

  bool grows() const { return layout == Layout::fixed_capacity || layout == Layout::grow; }
};

struct Graph {
  std::string file;         // relative to the bundle
  std::string fingerprint;  // of the graph's file and of those of its weights
  std::vector<TensorSpec> inputs, outputs, conditions;
  std::vector<StateSpec> states;
  std::string prepare;  // the graph that makes states of the conditions; empty without one
  bool past_length = false, whole = false;
  std::optional<int64_t> max_context, batch;
  std::vector<int64_t> ends;  // tokens after which a step may end; any where it is empty
};

namespace detail {

inline Dim dim_of(const json::Value& value) {
  Dim dim;
  if (value.kind == json::Value::Kind::number) {
    dim.size = value.integer;
    return dim;
  }
  const size_t star = value.string.find('*');
  const bool several = star != std::string::npos && value.string.substr(star + 1) == "time" &&
                       value.string.find_first_not_of("0123456789") == star;
  dim.symbol = several ? "time" : value.string;
  if (several) dim.times = std::stoll(value.string.substr(0, star));
  return dim;
}

inline Bound bound_of(const json::Value& value) {
  Bound bound;
  if (value.kind == json::Value::Kind::number) bound.number = value.integer;
  if (value.kind == json::Value::Kind::string) bound.symbol = value.string;
  return bound;
}

inline TensorSpec tensor_of(const json::Value& entry, const char* name) {
  TensorSpec spec;
  spec.name = entry.at(name).string;
  spec.dtype = &named_dtype(entry.at("dtype").string);
  for (const json::Value& each : entry.at("shape").array) spec.shape.push_back(dim_of(each));
  if (!entry["default"].is_null()) spec.fallback = entry["default"].number;
  const json::Value& below = entry["below"];
  if (below.kind != json::Value::Kind::array) {
    if (!below.is_null()) spec.below.push_back(bound_of(below));
    return spec;
  }
  for (const json::Value& each : below.array) {
    spec.below_by_row = each.kind == json::Value::Kind::array;
    spec.below.push_back(bound_of(spec.below_by_row ? each.array.at(0) : each));
  }
  return spec;
}

inline StateSpec state_of(const json::Value& entry) {
  static const std::map<std::string, Layout> layouts = {
      {"recurrent", Layout::recurrent}, {"conv", Layout::conv},
      {"window", Layout::window},       {"static", Layout::fixed_capacity},
      {"grow", Layout::grow},           {"prepared", Layout::prepared}};
  StateSpec spec;
  spec.value = tensor_of(entry, "input");
  spec.output = entry.at("output").string;
  const auto found = layouts.find(entry.at("layout").string);
  if (found == layouts.end()) throw Error("there is no layout " + entry.at("layout").string);
  spec.layout = found->second;
  if (!entry["initial"].is_null()) spec.initial = entry["initial"].number;
  if (spec.grows()) {
    spec.axis = static_cast<size_t>(entry.at("axis").integer);
    if (spec.axis >= spec.value.shape.size()) throw Error("a state has no axis of its tokens");
  }
  return spec;
}

inline std::vector<TensorSpec> tensors_of(const json::Value& entries) {
  std::vector<TensorSpec> specs;
  for (const json::Value& entry : entries.array) specs.push_back(tensor_of(entry, "name"));
  return specs;
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(path.string() + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

inline Graph graph_of(const json::Value& manifest, const std::string& name) {
  if (manifest["graphs"].kind != json::Value::Kind::object)
    throw Error("it is of an older version; export the bundle again");
  const json::Value& entry = manifest["graphs"][name];
  if (entry.is_null()) {
    std::string known;
    for (const auto& [each, _] : manifest["graphs"].object) known += " " + each;
    throw Error("there is no graph " + name + "; there are:" + known);
  }
  const json::Value& target = entry.at("targets")["ort"];
  if (target.is_null()) throw Error("it has no graph for ONNX Runtime: export it for ort");
  Graph graph;
  graph.file = target.at("path").string;
  std::vector<std::string> files;
  for (const json::Value& each : target["data"].array) files.push_back(each.string);
  std::sort(files.begin(), files.end());
  files.insert(files.begin(), graph.file);
  std::string listed;
  for (const std::string& file : files)
    listed += file + " " + manifest.at("files").at(file).at("sha256").string + "\n";
  graph.fingerprint = sha256(listed);
  graph.inputs = tensors_of(entry.at("inputs"));
  graph.outputs = tensors_of(entry.at("outputs"));
  graph.conditions = tensors_of(entry["conditions"]);
  for (const json::Value& each : entry.at("states").array) graph.states.push_back(state_of(each));
  graph.prepare = entry["prepare"].string;
  graph.past_length = entry.at("past_length").boolean;
  graph.whole = entry["whole"].boolean;
  const json::Value& limits = entry.at("limits");
  if (!limits["max_context"].is_null()) graph.max_context = limits["max_context"].integer;
  if (!limits["batch"].is_null()) graph.batch = limits["batch"].integer;
  for (const json::Value& end : limits["ends"].array) graph.ends.push_back(end.integer);
  return graph;
}

}  // namespace detail

// The graph `name` of the bundle in the folder `bundle`; throws Error where it is not one.
inline Graph read_graph(const std::filesystem::path& bundle, const std::string& name) {
  const std::filesystem::path path = bundle / "manifest.json";
  const std::string text = detail::read_file(path);
  try {
    return detail::graph_of(json::parse(text), name);
  } catch (const std::exception& error) {
    throw Error(path.string() + ": " + error.what());
  }
}

}  // namespace intaglio
