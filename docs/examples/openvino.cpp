// Classifies an image with an OpenVINO file and OpenVINO's C++ API.
//
//     c++ -std=c++17 openvino.cpp -I INCLUDE -L LIBRARIES -lopenvino -o classify
//     ./classify model.xml image.rgb
//
// image.rgb holds the pixels that the model takes: S rows of S pixels, bytes in RGB order.

#include <openvino/openvino.hpp>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    std::ifstream file(argv[2], std::ios::binary);
    std::vector<std::uint8_t> rgb{std::istreambuf_iterator<char>(file), {}};

    ov::Core core;
    auto graph = core.read_model(argv[1]);
    ov::PartialShape shape = graph->input().get_partial_shape();
    shape[0] = 1;  // images a call
    graph->reshape(shape);
    auto model = core.compile_model(
        graph, "CPU", ov::hint::inference_precision(ov::element::f32),
        ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));

    ov::InferRequest request = model.create_infer_request();
    ov::Tensor images = request.get_input_tensor();
    if (rgb.size() != images.get_size()) {
        std::cerr << "expected " << images.get_shape()[2] << " x " << images.get_shape()[3] << " pixels\n";
        return 1;
    }
    // Bytes [S, S, 3] become floats [3, S, S] from 0 to 1. The graph itself normalizes them.
    const std::size_t n = rgb.size() / 3;
    for (std::size_t i = 0; i < 3 * n; ++i) images.data<float>()[i % 3 * n + i / 3] = rgb[i] / 255.0f;

    request.infer();
    ov::Tensor logits = request.get_output_tensor();
    const float* first = logits.data<const float>();

    // The place in class_names of artifact.json, from 0
    std::cout << std::max_element(first, first + logits.get_size()) - first << '\n';
}
