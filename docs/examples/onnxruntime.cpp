// Classifies an image with an ONNX file and ONNX Runtime's C++ API.
//
//     c++ -std=c++17 onnxruntime.cpp -I INCLUDE -lonnxruntime -o classify
//     ./classify model.onnx image.rgb
//
// image.rgb holds the pixels that the model takes: S rows of S pixels, bytes in RGB order.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

// Bytes [S, S, 3] become floats [3, S, S] from 0 to 1. The graph itself normalizes them.
std::vector<float> to_pixels(const std::vector<std::uint8_t>& rgb) {
    const std::size_t n = rgb.size() / 3;
    std::vector<float> pixels(3 * n);
    for (std::size_t i = 0; i < 3 * n; ++i) pixels[i % 3 * n + i / 3] = rgb[i] / 255.0f;
    return pixels;
}

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    std::ifstream file(argv[2], std::ios::binary);
    std::vector<float> pixels = to_pixels({std::istreambuf_iterator<char>(file), {}});

    Ort::Env env;
    Ort::SessionOptions options;  // on a GPU: options.AppendExecutionProvider_CUDA({});
    Ort::Session session(env, argv[1], options);

    auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    shape[0] = 1;  // images a call
    if (pixels.size() != std::size_t(3 * shape[2] * shape[3])) {
        std::cerr << "expected " << shape[2] << " x " << shape[3] << " pixels\n";
        return 1;
    }
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto images = Ort::Value::CreateTensor<float>(
        memory, pixels.data(), pixels.size(), shape.data(), shape.size());

    const char* inputs[] = {"images"};
    const char* outputs[] = {"logits"};
    auto results = session.Run(Ort::RunOptions{}, inputs, &images, 1, outputs, 1);
    const float* logits = results[0].GetTensorData<float>();
    const auto n_classes = results[0].GetTensorTypeAndShapeInfo().GetElementCount();

    // The place in class_names of artifact.json, from 0
    std::cout << std::max_element(logits, logits + n_classes) - logits << '\n';
}
