// Steps a bundle through a file of inputs, for tests/runtime/test_headers.py.
//
// steps BUNDLE INPUTS.npz OUTPUTS.npz PARTS [--restore FILE] [--save FILE] [--capacity N]
//
// PARTS are the tokens of each step, as 1,4,2; outputs are those of all steps in a row.
#include <intaglio.hpp>

#include <iostream>
#include <sstream>
#include <string>
#include <vector>

using intaglio::Tensor;

// `tensor` from `start` on, `size` entries along `axis`.
static Tensor slice(const Tensor& tensor, size_t axis, int64_t start, int64_t size) {
  intaglio::Shape shape = tensor.shape;
  size_t outer = 1, inner = tensor.dtype->size;
  for (size_t i = 0; i < axis; ++i) outer *= static_cast<size_t>(shape[i]);
  for (size_t i = axis + 1; i < shape.size(); ++i) inner *= static_cast<size_t>(shape[i]);
  const size_t whole = static_cast<size_t>(shape[axis]) * inner;
  const size_t part = static_cast<size_t>(size) * inner;
  shape[axis] = size;
  Tensor found(*tensor.dtype, shape);
  for (size_t i = 0; i < outer; ++i)
    std::memcpy(found.bytes.data() + i * part,
                tensor.bytes.data() + i * whole + static_cast<size_t>(start) * inner, part);
  return found;
}

int main(int argc, char** argv) try {
  const std::vector<std::string> words(argv + 1, argv + argc);
  intaglio::Options options;
  options.threads = 1;
  std::string restore, save;
  for (size_t i = 4; i + 1 < words.size(); i += 2) {
    if (words[i] == "--restore") restore = words[i + 1];
    if (words[i] == "--save") save = words[i + 1];
    if (words[i] == "--capacity") options.capacity = std::stoll(words[i + 1]);
  }
  intaglio::Session session(words.at(0), options);
  intaglio::Npz results;
  intaglio::Tensors inputs, conditions;
  for (auto& [name, tensor] : intaglio::read_npz(words.at(1)).arrays) {
    if (name.rfind("condition:", 0) == 0)
      conditions[name.substr(10)] = tensor;
    else
      inputs[name] = tensor;
  }
  if (!restore.empty()) session.restore(restore);
  if (!conditions.empty()) session.condition(conditions);
  std::stringstream parts(words.at(3));
  int64_t start = 0, count = 0;
  for (std::string part; std::getline(parts, part, ','); ++count) {
    const int64_t size = std::stoll(part);
    intaglio::Tensors step;
    for (const auto& [name, tensor] : inputs) {
      step[name] = tensor;
      for (const intaglio::TensorSpec& spec : session.graph().inputs)
        for (size_t axis = 0; spec.name == name && axis < spec.shape.size(); ++axis)
          if (axis < tensor.shape.size() && spec.shape[axis].symbol == "time") step[name] = slice(tensor, axis, start, size);
    }
    for (auto& [name, tensor] : session.step(step))
      results.arrays[name + "." + std::to_string(count)] = std::move(tensor);
    start += size;
  }
  if (!save.empty()) session.save(save);
  intaglio::write_npz(words.at(2), results);
} catch (const intaglio::Error& error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
