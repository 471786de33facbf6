// Masks the buildings of one image with libtorch; neither kit nor Python is needed.
//
//     gdal_translate -of ENVI -co INTERLEAVE=BSQ image.tif image.raw
//     ./predict weights/lite0.pt image.raw 1024 768 3 mask.pgm        # width, height, bands
//
// image.raw is bytes alone: the plane of R, row by row, then those of G, B and, of 4 bands, alpha. GDAL copies the
// order of a TIFF, where it is often another one: leave no INTERLEAVE out. The mask is 1 on buildings, else 0, in a
// grey image that GDAL and most other programs read. CMakeLists.txt beside this file builds the program.

#include <torch/script.h>

#include <filesystem>
#include <fstream>
#include <iostream>

int main(int argc, char** argv) try {
    if (argc != 7) throw std::invalid_argument("expected WEIGHTS IMAGE WIDTH HEIGHT BANDS MASK");
    const int64_t width = std::atoll(argv[3]), height = std::atoll(argv[4]), bands = std::atoll(argv[5]);
    const int64_t bytes = std::filesystem::file_size(argv[2]);
    if (width < 1 || height < 1 || bytes != width * height * bands)
        throw std::invalid_argument(std::string(argv[2]) + " has " + std::to_string(bytes) + " bytes, expected " +
                                    argv[3] + " x " + argv[4] + " x " + argv[5]);
    torch::Tensor image = torch::empty({1, bands, height, width}, torch::kUInt8);
    std::ifstream(argv[2], std::ios::binary).read(static_cast<char*>(image.data_ptr()), bytes);

    c10::InferenceMode no_gradients;
    torch::jit::Module model = torch::jit::load(argv[1], torch::kCPU);
    torch::Tensor mask = model.get_method("mask")({image}).toTensor();  // (1, 1, H, W)

    std::ofstream file(argv[6], std::ios::binary);
    file << "P5\n" << width << ' ' << height << "\n255\n";
    file.write(static_cast<const char*>(mask.data_ptr()), mask.numel()).flush();
    if (!file) throw std::runtime_error(std::string("cannot write ") + argv[6]);
} catch (const c10::Error& error) {
    std::cerr << "error: " << error.what_without_backtrace() << '\n';
    return 1;
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
}
