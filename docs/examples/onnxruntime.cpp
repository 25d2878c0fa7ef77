// Classifies images of any size with ONNX Runtime's C++ API.
//
//     c++ -std=c++17 onnxruntime.cpp -I onnxruntime/include -L onnxruntime/lib -lonnxruntime -o classify
//     ./classify model.image.onnx image.ppm ...
//
// The graph resizes, crops and scales. The answers are what `kdedge verify` asks for.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

// The names of a JSON list, still as JSON: with quotes and escapes.
std::vector<std::string> names_in(const std::string& json) {
    std::vector<std::string> names;
    for (std::size_t i = 0; (i = json.find('"', i)) != std::string::npos;) {
        const std::size_t start = i++;
        while (json[i] != '"') i += json[i] == '\\' ? 2 : 1;
        names.push_back(json.substr(start, ++i - start));
    }
    return names;
}

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    Ort::Env env;
    Ort::SessionOptions options;
    Ort::Session session(env, argv[1], options);
    Ort::AllocatorWithDefaultOptions allocator;
    const auto metadata = session.GetModelMetadata();
    const auto text = metadata.LookupCustomMetadataMapAllocated("class_names", allocator);
    const auto names = names_in(text ? text.get() : "");
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

    for (int i = 2; i < argc; ++i) {
        // Any decoder will do that gives bytes in RGB order, row by row; PPM files need none.
        std::ifstream file(argv[i], std::ios::binary);
        std::string kind;
        std::int64_t width = 0, height = 0, largest = 0;
        if (!(file >> kind >> width >> height >> largest) || kind != "P6" || largest != 255) {
            std::cerr << argv[i] << " is no PPM file with 8 bits\n";
            return 1;
        }
        file.get();  // the line's end
        std::vector<std::uint8_t> rgb(3 * width * height);
        if (!file.read(reinterpret_cast<char*>(rgb.data()), rgb.size())) return 1;

        const std::int64_t shape[] = {height, width, 3};
        auto image = Ort::Value::CreateTensor<std::uint8_t>(memory, rgb.data(), rgb.size(), shape, 3);
        const char* inputs[] = {"image"};
        const char* outputs[] = {"logits"};
        auto results = session.Run(Ort::RunOptions{}, inputs, &image, 1, outputs, 1);
        const float* logits = results[0].GetTensorData<float>();
        const auto best = std::max_element(logits, logits + names.size()) - logits;
        double sum = 0;
        for (std::size_t c = 0; c < names.size(); ++c) sum += std::exp(double(logits[c]) - logits[best]);
        std::cout << "{\"label\": " << names[best] << ", \"score\": " << 100 / sum << "}\n";
    }
}
