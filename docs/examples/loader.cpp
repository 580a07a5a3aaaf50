// A reader of safetensors files in about sixty lines, and a golden test with it.
//
//   refattn golden softmax --out golden
//   c++ -std=c++17 -O2 -o loader loader.cpp && ./loader golden/float32/plain
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Tensor {
    std::string dtype;
    std::vector<size_t> shape;
    std::string bytes;

    template <class Number> std::vector<Number> as(const char *expected) const {
        if (dtype != expected || bytes.size() % sizeof(Number)) throw std::runtime_error("is " + dtype + ", expected " + expected);
        std::vector<Number> numbers(bytes.size() / sizeof(Number));
        if (!bytes.empty()) std::memcpy(numbers.data(), bytes.data(), bytes.size());
        return numbers;
    }
};

// The header: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
class Header {
    const std::string &text;
    size_t at = 0;

  public:
    explicit Header(const std::string &text) : text(text) {}

    bool next(char c) {  // whether this comes next, after spaces; then it is passed over
        while (at < text.size() && std::isspace(static_cast<unsigned char>(text[at]))) at++;
        return at < text.size() && text[at] == c && ++at;
    }
    void need(char c) {
        if (!next(c)) throw std::runtime_error(std::string("header: expected ") + c);
    }
    std::string word() {
        need('"');
        size_t end = text.find('"', at);
        if (end == std::string::npos) throw std::runtime_error("header: a word does not end");
        std::string found = text.substr(at, end - at);
        at = end + 1;
        return found;
    }
    std::vector<size_t> numbers() {
        std::vector<size_t> found;
        need('[');
        while (!next(']')) {
            size_t used = 0;
            found.push_back(std::stoull(text.substr(at, 20), &used));
            at += used;
            next(',');
        }
        return found;
    }
};

std::map<std::string, Tensor> read_safetensors(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::string data((std::istreambuf_iterator<char>(file)), {});
    uint64_t length = 0;  // little endian, as are the numbers
    if (data.size() >= 8) std::memcpy(&length, data.data(), 8);
    if (length < 2 || length > data.size() - 8) throw std::runtime_error(path + " is no safetensors file");
    std::string text = data.substr(8, length), numbers = data.substr(8 + length);
    std::map<std::string, Tensor> found;
    Header header(text);
    for (header.need('{'); !header.next('}'); header.next(',')) {
        Tensor &tensor = found[header.word()];
        header.need(':');
        for (header.need('{'); !header.next('}'); header.next(',')) {
            std::string key = header.word();
            header.need(':');
            if (key == "dtype") tensor.dtype = header.word();
            else if (key == "shape") tensor.shape = header.numbers();
            else if (key == "data_offsets") {
                std::vector<size_t> ends = header.numbers();
                if (ends.size() != 2 || ends[0] > ends[1] || ends[1] > numbers.size()) throw std::runtime_error("header: wrong offsets");
                tensor.bytes = numbers.substr(ends[0], ends[1] - ends[0]);
            } else header.word();
        }
    }
    return found;
}

// ---- what is tested: put yours here ----
static std::vector<float> softmax(const std::vector<float> &x, size_t classes) {
    std::vector<float> y(x.size());
    for (size_t row = 0; row < x.size(); row += classes) {
        float largest = -INFINITY, total = 0;
        for (size_t j = row; j < row + classes; j++) largest = std::fmax(largest, x[j]);
        for (size_t j = row; j < row + classes; j++) total += y[j] = std::exp(x[j] - largest);
        for (size_t j = row; j < row + classes; j++) y[j] /= total;
    }
    return y;
}

int main(int argc, char **argv) try {
    if (argc != 2) throw std::runtime_error("usage: loader CASE");
    std::string folder = argv[1];
    auto inputs = read_safetensors(folder + "/inputs.safetensors"), expected = read_safetensors(folder + "/expected.safetensors");
    const Tensor &x = inputs.at("x");
    std::vector<float> got = softmax(x.as<float>("F32"), x.shape.back());
    std::vector<double> want = expected.at("output").as<double>("F64"), budget = expected.at("output.budget").as<double>("F64");
    size_t wrong = got.size() != want.size();
    for (size_t i = 0; i < want.size() && got.size() == want.size(); i++) wrong += !(std::fabs(got[i] - want[i]) <= budget[i]);
    std::printf("%zu of %zu wrong\n", wrong, want.size());
    return wrong != 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "loader: %s\n", error.what());
    return 2;
}
