// Writes the building mask of an image with libtorch. Neither kit nor Python is needed.
//
//     gdal_translate -of ENVI -co INTERLEAVE=BSQ image.tif image.raw
//     ./predict weights/lite0.pt image.raw 1024 768 3 mask.pgm        # width, height, bands
//
// image.raw holds bytes only: the whole red band, then green, blue and, with 4 bands, alpha. Without INTERLEAVE=BSQ
// GDAL would keep the TIFF's order, which is mostly pixel by pixel. The mask is a grey image (PGM) of 1 for building
// and 0 elsewhere; GDAL and most other programs read it. CMakeLists.txt builds the program.

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
