// intaglio: steps a bundle from C++17 on ONNX Runtime, with the state carried along.
//
//   intaglio::Session session("bundle");
//   const intaglio::Tensors outputs = session.step({{"input_ids", {{1, 3}, tokens}}});
//
// It needs the C header and the library of ONNX Runtime, and nothing else; the library has to have
// the operators of the bundle, as 1.32 does.  A session serves one thread; sessions side by side are
// independent.  Hashes are not checked here:
// `intaglio inspect` does that where a bundle arrives.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "intaglio/engine.hpp"
#include "intaglio/error.hpp"
#include "intaglio/json.hpp"
#include "intaglio/manifest.hpp"
#include "intaglio/npz.hpp"
#include "intaglio/tensor.hpp"

namespace intaglio {

struct Options {
  int threads = 0;         // for the work inside one operator; 0 leaves it to ONNX Runtime
  int64_t capacity = 256;  // tokens that caches have room for at the start; they double when full
};

class Session {
 public:
  // Opens the graph `name` of a bundle; throws Error where there is none that can be run.
  explicit Session(const std::filesystem::path& bundle, Options options = {},
                   const std::string& name = "main")
      : graph_(read_graph(bundle, name)),
        options_(options),
        engine_(std::make_unique<detail::Engine>(bundle, graph_, options.threads)) {
    if (options.capacity < 1) throw Error("a capacity is at least 1");
    fingerprint_ = graph_.fingerprint;
    if (!graph_.prepare.empty()) {
      prepare_ = read_graph(bundle, graph_.prepare);
      preparer_ = std::make_unique<detail::Engine>(bundle, *prepare_, options.threads);
      fingerprint_ += ":" + prepare_->fingerprint;
    }
    reset();
  }

  const Graph& graph() const { return graph_; }

  // Tokens that each row has consumed; empty before the first step.
  const std::vector<int64_t>& past_length() const { return past_; }

  // Gives what holds for the whole sequence, before its first step; it stays when the state is
  // reset.  Throws Error, and leaves the session as it was, where it does not fit.
  void condition(const Tensors& conditions) {
    if (graph_.conditions.empty()) throw Error("this graph takes no conditions");
    if (std::any_of(past_.begin(), past_.end(), [](int64_t tokens) { return tokens > 0; }))
      throw Error("a sequence has begun; reset the session, and then give its conditions");
    Tensors given;
    Sizes sizes;
    take(graph_.conditions, conditions, "condition", given, sizes);
    std::vector<std::pair<std::string, Tensor*>> inputs, outputs;
    for (auto& [each, tensor] : given) inputs.emplace_back(each, &tensor);
    for (const StateSpec& spec : graph_.states)
      if (spec.layout == Layout::prepared) outputs.emplace_back(spec.value.name, nullptr);
    std::vector<Tensor> made = preparer_->run(inputs, outputs);
    Tensors prepared;
    for (size_t i = 0; i < outputs.size(); ++i) prepared[outputs[i].first] = std::move(made[i]);
    conditions_ = std::move(given);
    prepared_ = std::move(prepared);
    conditioned_rows_ = rows_of(sizes);
    reset();
  }

  // Consumes the next tokens of each row and returns the outputs for them.  Any way to cut a
  // sequence into steps gives the same outputs.  The first step decides how many rows there are.
  // A step that throws leaves the state as it was.
  Tensors step(const Tensors& inputs) {
    if (!graph_.conditions.empty() && prepared_.empty())
      throw Error("the session lacks its conditions: call condition before the first step");
    Tensors given;
    Sizes sizes;
    take(graph_.inputs, inputs, "input", given, sizes);
    const int64_t rows = sizes.emplace("batch", graph_.batch.value_or(1)).first->second;
    const int64_t time = sizes.emplace("time", 1).first->second;
    if (rows < 1 || time < 1) throw Error("a step has at least one row and one token");
    require_rows(rows);
    if (graph_.whole) return outputs_of(given, {}, {});
    const bool first = past_.empty();
    if (first) begin(rows);
    try {
      return step_of(given, time);
    } catch (...) {
      if (first) reset();
      throw;
    }
  }

  // Starts over; the number of rows is free again, conditions stay.
  void reset() {
    past_.clear();
    now_.clear();
    next_.clear();
    capacity_ = limited(options_.capacity);
  }

  // Writes the state to a file that `restore` reads, here and in Python's Session.state.restore.
  void save(const std::filesystem::path& path) const {
    Npz content;
    content.texts["intaglio"] = "{\"version\": 1, \"fingerprint\": \"" + fingerprint_ +
                                "\", \"capacity\": " + std::to_string(capacity_) + "}";
    const Shape rows = {static_cast<int64_t>(past_.size())};
    content.arrays["past_length"] = Tensor(rows, past_);
    for (const auto& [name, tensor] : conditions_) content.arrays["condition:" + name] = tensor;
    for (const auto& [name, tensor] : prepared_) content.arrays["prepared:" + name] = tensor;
    for (const StateSpec& spec : graph_.states) {
      const auto found = now_.find(spec.value.name);
      if (found == now_.end()) continue;
      content.arrays[spec.value.name] =
          spec.layout == Layout::fixed_capacity ? resized(found->second, spec.axis, longest())
                                                : found->second;
    }
    write_npz(path, content);
  }

  // Continues from a snapshot of this bundle, bit for bit; throws Error, and leaves the state as it
  // was, where the file is none.
  void restore(const std::filesystem::path& path) {
    const Npz content = read_npz(path);
    const auto header = content.texts.find("intaglio");
    const auto past = content.arrays.find("past_length");
    if (header == content.texts.end() || past == content.arrays.end())
      throw Error(path.string() + " is no snapshot of a session");
    const json::Value facts = json::parse(header->second);
    if (facts.at("version").integer != 1)
      throw Error(path.string() + " is a snapshot of another version");
    if (facts.at("fingerprint").string != fingerprint_)
      throw Error(path.string() + " is a snapshot of another bundle");
    const auto* tokens = past->second.data<int64_t>();
    const std::vector<int64_t> lengths(tokens, tokens + past->second.size());
    const int64_t longest = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
    if (std::any_of(lengths.begin(), lengths.end(), [](int64_t n) { return n < 0; }) ||
        longest > graph_.max_context.value_or(longest))
      throw Error(path.string() + " counts tokens that no state can hold");
    const int64_t capacity = std::max(limited(options_.capacity), longest);
    Tensors states, conditions, prepared, given;
    const auto named = [&](const std::string& name) -> const Tensor& {
      const auto found = content.arrays.find(name);
      if (found == content.arrays.end()) throw Error(path.string() + " lacks " + name);
      return found->second;
    };
    for (const auto& [name, tensor] : content.arrays) {
      if (name.rfind("condition:", 0) == 0) conditions[name.substr(10)] = tensor;
      if (name.rfind("prepared:", 0) == 0) prepared[name.substr(9)] = tensor;
    }
    const auto rows = static_cast<int64_t>(lengths.size());
    for (const StateSpec& spec : graph_.states) {
      if (spec.layout == Layout::prepared || lengths.empty()) continue;
      const Tensor& tensor = named(spec.value.name);
      const Shape wanted = sized(spec, rows, longest);
      if (tensor.shape != wanted || tensor.dtype != spec.value.dtype)
        throw Error(path.string() + ": " + spec.value.name + " is " + detail::words(tensor.shape) +
                    ", should be " + detail::words(wanted));
      states[spec.value.name] = spec.layout == Layout::fixed_capacity
                                    ? resized(tensor, spec.axis, capacity)
                                    : tensor;
    }
    Sizes sizes;
    if (!conditions.empty()) {
      take(graph_.conditions, conditions, "condition", given, sizes);
      for (const StateSpec& spec : graph_.states)
        if (spec.layout == Layout::prepared && !prepared.count(spec.value.name))
          throw Error(path.string() + " lacks " + spec.value.name);
    }
    const int64_t conditioned = rows_of(sizes);
    if (conditioned && rows && conditioned != rows)
      throw Error(path.string() + " has conditions of " + std::to_string(conditioned) +
                  " rows and a state of " + std::to_string(rows));
    conditions_ = std::move(given);
    prepared_ = std::move(prepared);
    conditioned_rows_ = conditioned;
    capacity_ = capacity;
    past_ = lengths;
    now_ = std::move(states);
    next_.clear();
    for (const StateSpec& spec : graph_.states)
      if (swapped(spec) && now_.count(spec.value.name)) next_[spec.value.name] = now_[spec.value.name];
  }

 private:
  using Sizes = std::map<std::string, int64_t>;
  using Named = std::vector<std::pair<std::string, Tensor*>>;

  Graph graph_;
  Options options_;
  std::unique_ptr<detail::Engine> engine_, preparer_;
  std::optional<Graph> prepare_;
  std::string fingerprint_;
  std::vector<int64_t> past_;
  int64_t capacity_ = 0;
  int64_t conditioned_rows_ = 0;
  Tensors now_, next_;  // states by input; those of fixed shape that a step replaces have two
  Tensors conditions_, prepared_;

  // Rows that the sizes tell, 0 where none has any.
  static int64_t rows_of(const Sizes& sizes) {
    const auto rows = sizes.find("batch");
    return rows == sizes.end() ? 0 : rows->second;
  }

  static bool swapped(const StateSpec& spec) {
    return !spec.grows() && spec.layout != Layout::prepared;
  }

  int64_t longest() const {
    return past_.empty() ? 0 : *std::max_element(past_.begin(), past_.end());
  }

  int64_t limited(int64_t capacity) const {
    return std::min(capacity, graph_.max_context.value_or(capacity));
  }

  static Shape sized(const StateSpec& spec, int64_t rows, int64_t tokens) {
    Shape shape;
    for (const Dim& dim : spec.value.shape)
      shape.push_back(dim.symbol.empty() ? dim.size : dim.symbol == "batch" ? rows : tokens);
    return shape;
  }

  // Checks what is given against `specs`, fills in what may be left out, and collects sizes.
  static void take(const std::vector<TensorSpec>& specs, const Tensors& given,
                   const std::string& what, Tensors& taken, Sizes& sizes) {
    for (const auto& [name, tensor] : given) {
      const auto spec = std::find_if(specs.begin(), specs.end(),
                                     [&name = name](const TensorSpec& s) { return s.name == name; });
      if (spec == specs.end()) throw Error("there is no " + what + " " + name);
      const std::string who = "the " + what + " " + name;
      if (tensor.dtype != spec->dtype)
        throw Error(who + " is " + tensor.dtype->name + ", should be " + spec->dtype->name);
      if (tensor.shape.size() != spec->shape.size())
        throw Error(who + " is " + detail::words(tensor.shape) + ", should have " +
                    std::to_string(spec->shape.size()) + " axes");
      for (size_t axis = 0; axis < spec->shape.size(); ++axis) {
        const Dim& dim = spec->shape[axis];
        const int64_t size = tensor.shape[axis] / dim.times;
        const int64_t wanted =
            dim.symbol.empty() ? dim.size : sizes.emplace(dim.symbol, size).first->second;
        if (tensor.shape[axis] != wanted * dim.times)
          throw Error(who + " is " + detail::words(tensor.shape) + ", and its axis " +
                      std::to_string(axis) + " should be " + std::to_string(wanted * dim.times));
      }
      taken[name] = tensor;
    }
    for (const TensorSpec& spec : specs)  // by sizes that any input may tell
      if (given.count(spec.name)) require_below(given.at(spec.name), spec, sizes, what);
    for (const TensorSpec& spec : specs) {
      if (taken.count(spec.name)) continue;
      if (!spec.fallback) throw Error("the " + what + " " + spec.name + " is missing");
      Shape shape;
      for (const Dim& dim : spec.shape) {
        const auto size = sizes.find(dim.symbol);
        if (!dim.symbol.empty() && size == sizes.end())
          throw Error("the " + what + " " + spec.name + " is missing: its size follows from no other");
        shape.push_back(dim.symbol.empty() ? dim.size : size->second * dim.times);
      }
      Tensor filled(*spec.dtype, shape);
      filled.fill(*spec.fallback);
      taken[spec.name] = std::move(filled);
    }
  }

  static void require_below(const Tensor& tensor, const TensorSpec& spec, const Sizes& sizes,
                            const std::string& what) {
    const std::string type = tensor.dtype->name;
    if (spec.below.empty() || (type != "int64" && type != "int32")) return;
    const size_t columns = tensor.shape.empty() ? 1 : static_cast<size_t>(tensor.shape.back());
    for (size_t i = 0; i < tensor.size(); ++i) {
      const size_t own = spec.below.size() == 1 ? 0 : spec.below_by_row ? i / columns : i % columns;
      const Bound& bound = spec.below.at(own);
      const auto axis = sizes.find(bound.symbol);
      if (!bound.number && axis == sizes.end()) continue;
      const int64_t below = bound.number ? *bound.number : axis->second;
      const int64_t index =
          type == "int64" ? tensor.data<int64_t>()[i] : tensor.data<int32_t>()[i];
      if (index < 0 || index >= below)
        throw Error("the " + what + " " + spec.name + " has " + std::to_string(index) +
                    (below ? "; it should be from 0 to " + std::to_string(below - 1)
                           : "; there is nothing to pick from"));
    }
  }

  void require_rows(int64_t rows) const {
    const int64_t held = past_.empty() ? conditioned_rows_ : static_cast<int64_t>(past_.size());
    if (held && !graph_.whole && rows != held)
      throw Error("the step has " + std::to_string(rows) + " rows, the state " +
                  std::to_string(held));
    if (rows != graph_.batch.value_or(rows))
      throw Error("the step has " + std::to_string(rows) + " rows, and the bundle was exported for " +
                  std::to_string(*graph_.batch));
  }

  void begin(int64_t rows) {
    for (const StateSpec& spec : graph_.states) {
      if (spec.layout == Layout::prepared) continue;
      const int64_t tokens = spec.layout == Layout::grow ? 0 : capacity_;
      Tensor tensor(*spec.value.dtype, sized(spec, rows, tokens));
      tensor.fill(spec.initial);
      if (swapped(spec)) next_[spec.value.name] = tensor;
      now_[spec.value.name] = std::move(tensor);
    }
    past_.assign(static_cast<size_t>(rows), 0);
  }

  Tensors step_of(Tensors& given, int64_t time) {
    require_end(time);
    reserve(longest() + time);
    Tensor past({static_cast<int64_t>(past_.size())}, past_);
    Named states, results;
    if (graph_.past_length) states.emplace_back("past_length", &past);
    std::vector<std::string> grown;
    for (const StateSpec& spec : graph_.states) {
      const std::string& name = spec.value.name;
      if (spec.layout == Layout::prepared) {
        states.emplace_back(name, &prepared_.at(name));
        continue;
      }
      states.emplace_back(name, &now_.at(name));
      if (spec.layout == Layout::grow) {
        results.emplace_back(spec.output, nullptr);
        grown.push_back(name);
      } else {
        results.emplace_back(spec.output, swapped(spec) ? &next_.at(name) : &now_.at(name));
      }
    }
    Tensors longer;
    Tensors outputs = outputs_of(given, states, results, &longer, grown);
    for (auto& [name, tensor] : longer) now_[name] = std::move(tensor);
    for (auto& [name, tensor] : next_) std::swap(now_.at(name), tensor);
    for (int64_t& tokens : past_) tokens += time;
    return outputs;
  }

  // Runs the graph.  States that grew go into `longer`, under the names in `grown`.
  Tensors outputs_of(Tensors& given, const Named& states, const Named& results,
                     Tensors* longer = nullptr, const std::vector<std::string>& grown = {}) {
    Named inputs = states, wanted;
    for (auto& [name, tensor] : given) inputs.emplace_back(name, &tensor);
    for (const TensorSpec& spec : graph_.outputs) wanted.emplace_back(spec.name, nullptr);
    wanted.insert(wanted.end(), results.begin(), results.end());
    std::vector<Tensor> made = engine_->run(inputs, wanted);
    Tensors outputs;
    for (size_t i = 0; i < graph_.outputs.size(); ++i)
      outputs[graph_.outputs[i].name] = std::move(made[i]);
    for (size_t i = 0; i < grown.size(); ++i)
      (*longer)[grown[i]] = std::move(made[graph_.outputs.size() + i]);
    return outputs;
  }

  void require_end(int64_t time) const {
    if (graph_.ends.empty()) return;
    for (const int64_t tokens : past_)
      if (std::find(graph_.ends.begin(), graph_.ends.end(), tokens + time) == graph_.ends.end())
        throw Error("tokens of this model see each other in blocks, and a step takes whole ones: " +
                    std::to_string(tokens + time) + " tokens are no end of one");
  }

  void reserve(int64_t tokens) {
    if (tokens > graph_.max_context.value_or(tokens))
      throw Error("a row would hold " + std::to_string(tokens) + " tokens, and positions end at " +
                  std::to_string(*graph_.max_context));
    if (tokens <= capacity_) return;
    int64_t capacity = capacity_;
    while (capacity < tokens) capacity *= 2;
    capacity = limited(capacity);
    Tensors larger;  // all of them, before any takes its place: there may be no memory for one
    for (const StateSpec& spec : graph_.states)
      if (spec.layout == Layout::fixed_capacity)
        larger[spec.value.name] = resized(now_.at(spec.value.name), spec.axis, capacity);
    for (auto& [name, tensor] : larger) now_.at(name) = std::move(tensor);
    capacity_ = capacity;
  }

  // `tensor` with `tokens` entries along `axis`: cut, or filled up with zeros.
  static Tensor resized(const Tensor& tensor, size_t axis, int64_t tokens) {
    Shape shape = tensor.shape;
    const auto before = static_cast<size_t>(shape[axis]), after = static_cast<size_t>(tokens);
    shape[axis] = tokens;
    Tensor made(*tensor.dtype, shape);
    size_t outer = 1;
    for (size_t i = 0; i < axis; ++i) outer *= static_cast<size_t>(shape[i]);
    const size_t entries = before * outer;
    const size_t inner = entries == 0 ? 0 : tensor.bytes.size() / entries;
    for (size_t i = 0; inner && i < outer; ++i)
      std::memcpy(made.bytes.data() + i * after * inner, tensor.bytes.data() + i * before * inner,
                  std::min(before, after) * inner);
    return made;
  }
};

}  // namespace intaglio
