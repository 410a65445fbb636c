// Reads JSON, as manifests have it: a value is null, a bool, a number, a string, an array, an object.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"

namespace intaglio::json {

class Value {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  Kind kind = Kind::null;
  bool boolean = false;
  double number = 0;
  int64_t integer = 0;  // of a number without fraction
  std::string string;
  std::vector<Value> array;
  std::map<std::string, Value> object;

  bool is_null() const { return kind == Kind::null; }

  // The entry `key`; null where there is none.
  const Value& operator[](const std::string& key) const {
    static const Value none;
    const auto found = object.find(key);
    return found == object.end() ? none : found->second;
  }

  // The entry `key`, which has to be there.
  const Value& at(const std::string& key) const {
    const auto found = object.find(key);
    if (found == object.end()) throw Error("it lacks the entry \"" + key + "\"");
    return found->second;
  }
};

namespace detail {

constexpr int kDeepest = 64;  // arrays and objects within each other

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Value document() {
    Value value = this->value(0);
    space();
    if (at_ != text_.size()) fail("something follows the end");
    return value;
  }

 private:
  const std::string& text_;
  size_t at_ = 0;

  [[noreturn]] void fail(const std::string& why) const {
    throw Error("it is no JSON: " + why + " at byte " + std::to_string(at_));
  }

  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' ||
                                  text_[at_] == '\t'))
      ++at_;
  }

  char peek() {
    space();
    if (at_ == text_.size()) fail("it ends");
    return text_[at_];
  }

  void take(char wanted) {
    if (peek() != wanted) fail(std::string("no '") + wanted + "'");
    ++at_;
  }

  bool word(const char* expected) {
    const std::string wanted = expected;
    if (text_.compare(at_, wanted.size(), wanted) != 0) return false;
    at_ += wanted.size();
    return true;
  }

  Value value(int depth) {
    if (depth > kDeepest) fail("it is nested too deeply");
    Value found;
    switch (peek()) {
      case '{':
        found.kind = Value::Kind::object;
        ++at_;
        for (bool first = true; peek() != '}'; first = false) {
          if (!first) take(',');
          peek();
          std::string key = string();
          take(':');
          found.object[std::move(key)] = value(depth + 1);
        }
        ++at_;
        return found;
      case '[':
        found.kind = Value::Kind::array;
        ++at_;
        for (bool first = true; peek() != ']'; first = false) {
          if (!first) take(',');
          found.array.push_back(value(depth + 1));
        }
        ++at_;
        return found;
      case '"':
        found.kind = Value::Kind::string;
        found.string = string();
        return found;
      case 't':
      case 'f':
        found.kind = Value::Kind::boolean;
        found.boolean = text_[at_] == 't';
        if (!word("true") && !word("false")) fail("an unknown word");
        return found;
      case 'n':
        if (!word("null")) fail("an unknown word");
        return found;
      default:
        return number();
    }
  }

  Value number() {
    const size_t end = text_.find_first_not_of("+-.0123456789eE", at_);
    const std::string digits = text_.substr(at_, end - at_);
    char* rest = nullptr;
    Value found;
    found.kind = Value::Kind::number;
    found.number = std::strtod(digits.c_str(), &rest);
    if (digits.empty() || *rest != '\0') fail("no value");
    if (digits.find_first_of(".eE") == std::string::npos)
      found.integer = std::strtoll(digits.c_str(), nullptr, 10);
    else
      found.integer = static_cast<int64_t>(found.number);
    at_ += digits.size();
    return found;
  }

  std::string string() {
    if (text_[at_] != '"') fail("no string");
    std::string found;
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] != '\\') {
        found += text_[at_];
        continue;
      }
      if (++at_ == text_.size()) break;
      const std::string from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
      const size_t simple = from.find(text_[at_]);
      if (simple != std::string::npos)
        found += to[simple];
      else if (text_[at_] == 'u')
        append(found, code_point());
      else
        fail("an unknown escape");
    }
    if (at_ == text_.size()) fail("a string has no end");
    ++at_;
    return found;
  }

  uint32_t hex() {
    if (at_ + 4 >= text_.size()) fail("a string has no end");
    const std::string digits = text_.substr(at_ + 1, 4);
    if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
      fail("an unknown escape");
    at_ += 4;
    return static_cast<uint32_t>(std::strtoul(digits.c_str(), nullptr, 16));
  }

  uint32_t code_point() {
    const uint32_t first = hex();
    if (first < 0xD800 || first > 0xDBFF) return first;
    if (text_.compare(at_ + 1, 2, "\\u") != 0) fail("half of a surrogate pair");
    at_ += 2;
    const uint32_t second = hex();
    if (second < 0xDC00 || second > 0xDFFF) fail("half of a surrogate pair");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  static void append(std::string& text, uint32_t code) {
    if (code < 0x80) {
      text += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const int mark = more == 1 ? 0xC0 : more == 2 ? 0xE0 : 0xF0;
    text += static_cast<char>(static_cast<uint32_t>(mark) | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i)
      text += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
  }
};

}  // namespace detail

// The value that `text` is; throws Error where it is none.
inline Value parse(const std::string& text) { return detail::Parser(text).document(); }

}  // namespace intaglio::json
