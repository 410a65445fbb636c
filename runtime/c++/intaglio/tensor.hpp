// Arrays as steps take and give them, in the order of C, and what numpy calls their types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "error.hpp"

namespace intaglio {

using Shape = std::vector<int64_t>;

struct DType {
  const char* name;   // as manifests have it
  const char* numpy;  // as .npy files have it; empty where numpy has no such type
  size_t size;        // bytes
  int onnx;           // its number in ONNX
};

inline constexpr DType kDTypes[] = {
    {"float32", "<f4", 4, 1}, {"uint8", "|u1", 1, 2},   {"int8", "|i1", 1, 3},
    {"uint16", "<u2", 2, 4},  {"int16", "<i2", 2, 5},   {"int32", "<i4", 4, 6},
    {"int64", "<i8", 8, 7},   {"bool", "|b1", 1, 9},    {"float16", "<f2", 2, 10},
    {"float64", "<f8", 8, 11}, {"uint32", "<u4", 4, 12}, {"uint64", "<u8", 8, 13},
    {"bfloat16", "", 2, 16},
};

namespace detail {

template <typename Fits>
const DType& find_dtype(Fits fits, const std::string& said) {
  for (const DType& each : kDTypes)
    if (fits(each)) return each;
  throw Error("there is no dtype " + said);
}

inline const DType& named_dtype(const std::string& name) {
  return find_dtype([&](const DType& each) { return name == each.name; }, name);
}

inline const DType& onnx_dtype(int number) {
  return find_dtype([&](const DType& each) { return number == each.onnx; }, std::to_string(number));
}

inline const DType& numpy_dtype(const std::string& code) {
  return find_dtype([&](const DType& each) { return *each.numpy && code == each.numpy; }, code);
}

inline std::string words(const Shape& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// How many entries a shape has; throws where that is no number of bytes that could be held.
inline size_t count(const Shape& shape) {
  uint64_t entries = 1;
  for (const int64_t size : shape) {
    if (size < 0 || (size > 0 && entries > (uint64_t{1} << 48) / static_cast<uint64_t>(size)))
      throw Error("no memory holds the shape " + words(shape));
    entries *= static_cast<uint64_t>(size);
  }
  return static_cast<size_t>(entries);
}

}  // namespace detail

// The type of a C++ number; of float16 and bfloat16 the bits are given as uint16_t, with `dtype`.
template <typename T>
const DType& dtype_of() {
  static_assert(std::is_arithmetic_v<T>, "a tensor holds numbers");
  if constexpr (std::is_same_v<T, bool>) return detail::named_dtype("bool");
  const std::string bits = std::to_string(8 * sizeof(T));
  if constexpr (std::is_floating_point_v<T>) return detail::named_dtype("float" + bits);
  return detail::named_dtype((std::is_signed_v<T> ? "int" : "uint") + bits);
}

// An array: `bytes` are its entries, the last axis fastest.
struct Tensor {
  const DType* dtype = &kDTypes[0];
  Shape shape;
  std::vector<std::byte> bytes;

  Tensor() = default;

  // Zeros.
  Tensor(const DType& type, Shape sizes)
      : dtype(&type), shape(std::move(sizes)), bytes(detail::count(shape) * type.size) {}

  // A copy of `values`, as many as `sizes` has entries.
  template <typename T>
  Tensor(Shape sizes, const std::vector<T>& values) : Tensor(dtype_of<T>(), std::move(sizes)) {
    if (values.size() != detail::count(shape))
      throw Error(std::to_string(values.size()) + " values are no " + detail::words(shape));
    std::memcpy(bytes.data(), values.data(), bytes.size());
  }

  size_t size() const { return bytes.size() / dtype->size; }

  // Its entries; throws where they are of another type.
  template <typename T>
  const T* data() const {
    const bool raw = dtype->size == 2 && std::is_same_v<T, uint16_t>;
    if (!raw && &dtype_of<T>() != dtype)
      throw Error(std::string("the tensor is ") + dtype->name + ", not " + dtype_of<T>().name);
    return reinterpret_cast<const T*>(bytes.data());
  }

  template <typename T>
  T* data() {
    return const_cast<T*>(std::as_const(*this).data<T>());
  }

  // Sets every entry to `value`.
  void fill(double value) {
    if (value == 0) {
      std::memset(bytes.data(), 0, bytes.size());
      return;
    }
    const std::string name = dtype->name;
    if (name == "float32") return fill_as<float>(value);
    if (name == "float64") return fill_as<double>(value);
    if (name == "int64") return fill_as<int64_t>(value);
    if (name == "int32") return fill_as<int32_t>(value);
    if (name == "bool" || name == "uint8") return fill_as<uint8_t>(value);
    throw Error("a " + name + " is filled with zeros alone");
  }

 private:
  template <typename T>
  void fill_as(double value) {
    const T each = static_cast<T>(value);
    for (size_t at = 0; at < bytes.size(); at += sizeof(T))
      std::memcpy(bytes.data() + at, &each, sizeof(T));
  }
};

using Tensors = std::map<std::string, Tensor>;

}  // namespace intaglio
