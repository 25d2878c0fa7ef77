// Classifies an image with an engine and TensorRT's C++ API, 10 or later.
//
//     c++ -std=c++17 tensorrt.cpp -lnvinfer -lcudart -o classify
//     ./classify model.fp16.engine image.rgb
//
// image.rgb holds the pixels that the model takes: S rows of S pixels, bytes in RGB order.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <vector>

class Log : public nvinfer1::ILogger {
    void log(Severity severity, const char* text) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << text << '\n';
    }
};

std::vector<std::uint8_t> read(const char* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// Bytes [S, S, 3] become floats [3, S, S] from 0 to 1. The graph itself normalizes them.
std::vector<float> to_pixels(const std::vector<std::uint8_t>& rgb) {
    const std::size_t n = rgb.size() / 3;
    std::vector<float> pixels(3 * n);
    for (std::size_t i = 0; i < 3 * n; ++i) pixels[i % 3 * n + i / 3] = rgb[i] / 255.0f;
    return pixels;
}

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    const auto data = read(argv[1]);
    const auto pixels = to_pixels(read(argv[2]));

    // Made once; the log, the runtime and the engine have to outlive the context
    Log log;
    std::unique_ptr<nvinfer1::IRuntime> runtime{nvinfer1::createInferRuntime(log)};
    if (!runtime) return 1;
    std::unique_ptr<nvinfer1::ICudaEngine> engine{
        runtime->deserializeCudaEngine(data.data(), data.size())};
    if (!engine) return 1;  // of another GPU or TensorRT version; the log says which
    std::unique_ptr<nvinfer1::IExecutionContext> context{engine->createExecutionContext()};
    if (!context) return 1;

    nvinfer1::Dims shape = engine->getTensorShape("images");
    shape.d[0] = 1;  // images a call
    std::vector<float> logits(engine->getTensorShape("logits").d[1]);
    if (engine->getTensorDataType("images") != nvinfer1::DataType::kFLOAT) {
        std::cerr << "expected an engine of float pixels\n";
        return 1;
    }
    if (pixels.size() != std::size_t(3 * shape.d[2] * shape.d[3])) {
        std::cerr << "expected " << shape.d[2] << " x " << shape.d[3] << " pixels\n";
        return 1;
    }
    const std::size_t n_input = pixels.size() * sizeof(float);
    const std::size_t n_output = logits.size() * sizeof(float);
    void *images = nullptr, *answers = nullptr;
    cudaStream_t stream = nullptr;
    if (cudaMalloc(&images, n_input) || cudaMalloc(&answers, n_output) ||
        cudaStreamCreate(&stream) || !context->setInputShape("images", shape) ||
        !context->setTensorAddress("images", images) ||
        !context->setTensorAddress("logits", answers))
        return 1;

    // For each image
    cudaMemcpyAsync(images, pixels.data(), n_input, cudaMemcpyHostToDevice, stream);
    const bool is_queued = context->enqueueV3(stream);
    cudaMemcpyAsync(logits.data(), answers, n_output, cudaMemcpyDeviceToHost, stream);
    if (!is_queued || cudaStreamSynchronize(stream)) return 1;

    // The place in class_names of artifact.json, from 0
    std::cout << std::max_element(logits.begin(), logits.end()) - logits.begin() << '\n';

    cudaStreamDestroy(stream);
    cudaFree(answers);
    cudaFree(images);
}
