"""The operators that a TorchScript file may use, checked before torch opens it: TorchScript is code.

A checksum shows that a file is the published one, not that its author means well: TorchScript can read and write files
(`torch.from_file`, `torch.save`). `torch.jit.load` compiles the text below `code/`, and reads `data.pkl` and
`constants.pkl` with an unpickler of its own in C++, which creates numbers, strings, lists, tensors, and objects of the
classes in `code/` and of those built into torch. So every name in the code must be in a list of operators, pickles are
disassembled without running them, and everything unknown is refused. A hostile file can still give wrong masks, run
for ever, or take all memory.

Source:
    torch/csrc/jit/serialization: import.cpp, import_source.cpp and unpickler.cpp of PyTorch.
"""

import pickletools
import re
from pathlib import Path

from kit.deploy.trust.torchscript_text import BUILTINS, names_in
from kit.deploy.trust.zip_records import HINT, read_records
from kit.errors import WeightsError

# Operators that compute tensors and numbers from tensors and numbers, and do nothing else. Those with a `_` form write
# into a tensor of the program. Left out, though they touch no file or process: what exposes uninitialised memory
# (empty, as_strided, set_, resize_), random numbers, global settings, quantised and sparse tensors, gradients.
ELEMENTWISE = """
    abs acos add addcdiv addcmul asin atan atan2 bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp
    clamp_max clamp_min clip cos cosh div divide dropout elu eq erf erfc exp exp2 expm1 feature_dropout floor
    floor_divide fmod frac ge gelu greater greater_equal gt hardsigmoid hardswish hardtanh le leaky_relu lerp less
    less_equal log log10 log1p log2 logical_and logical_not logical_or logical_xor logit lt masked_fill mish mul
    multiply nan_to_num ne neg negative not_equal pow reciprocal relu relu6 remainder round rsqrt selu sigmoid sign
    silu sin sinh sqrt square sub subtract tan tanh threshold tril triu true_divide trunc xlogy
"""
TENSOR = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d avg_pool1d avg_pool2d max_pool1d max_pool2d
    _convolution _convolution_mode conv1d conv2d conv3d conv_transpose1d conv_transpose2d convolution
    addmm baddbmm bmm dot einsum linear matmul mm mv outer scaled_dot_product_attention tensordot
    batch_norm group_norm instance_norm layer_norm linalg_norm linalg_vector_norm norm rms_norm std_mean var_mean
    glu hardshrink log_sigmoid log_softmax logaddexp logsumexp maximum minimum fmax fmin prelu rsub softmax softplus
    constant_pad_nd pad reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
    __interpolate _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d affine_grid_generator grid_sampler upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    all amax amin any argmax argmin count_nonzero cummax cummin cumprod cumsum max mean median min prod std sum
    argsort bucketize searchsorted sort topk var
    broadcast_tensors broadcast_to cat channel_shuffle chunk col2im concat diagonal expand expand_as
    flatten flip fliplr flipud hstack im2col meshgrid movedim narrow numpy_T permute pixel_shuffle pixel_unshuffle
    ravel repeat repeat_interleave reshape reshape_as roll rot90 split split_with_sizes squeeze squeeze_ stack
    swapaxes t tensor_split tile transpose transpose_ unbind unflatten unfold unsqueeze unsqueeze_ view view_as vstack
    fill fill_ gather index index_add index_put index_put_ index_select masked_select nonzero scatter scatter_add
    select slice take_along_dim where zero_ copy_ embedding one_hot
    arange eye full full_like linspace new_full new_ones new_zeros ones ones_like scalar_tensor tensor zeros
    zeros_like alias clone contiguous detach lift_fresh to type_as
    complex fft_fft2 fft_fftshift fft_ifft2 fft_ifftshift fft_irfft2 fft_rfft2 imag real view_as_complex view_as_real
    allclose dim is_complex is_contiguous is_floating_point is_nonzero is_same_size isfinite isinf isnan item numel
    result_type size stride
"""
# on numbers, lists and strings; names with a capital are conversions
PLAIN = """
    Bool Float FloatImplicit Int IntImplicit ScalarImplicit __and__ __contains__ __derive_index __getitem__ __is__
    __isnot__ __not__ __or__ __range_length __round_to_zero_floordiv _set_item _unwrap_optional append device extend
    floordiv format insert len list mathremainder
"""
PRIM = "NumToTensor RaiseException TupleIndex abs device dtype is_cuda layout max min rangelist"
ALLOWED = BUILTINS.union(
    (f"torch.{name}" for name in (ELEMENTWISE + TENSOR + PLAIN).split()),
    (f"torch.{name}_" for name in ELEMENTWISE.split()),
    (f"ops.prim.{name}" for name in PRIM.split()),
)
# the opcodes of torch's unpickler, of which only GLOBAL names something; and the allowed names besides own classes
OPCODES = """
    PROTO EMPTY_LIST EMPTY_TUPLE EMPTY_DICT BINPUT LONG_BINPUT BINGET LONG_BINGET MARK NEWTRUE NEWFALSE NONE BININT1
    BININT2 BININT LONG1 BINUNICODE BINFLOAT TUPLE TUPLE1 TUPLE2 TUPLE3 APPENDS LIST DICT SETITEM SETITEMS GLOBAL
    NEWOBJ BUILD REDUCE BINPERSID STOP
"""
GLOBALS = re.compile(
    r"torch\._utils\._rebuild_tensor_v2|torch\.[A-Z][a-z]\w*Storage|collections\.OrderedDict"
    r"|torch\.jit\._pickle\.build_(int|double|bool|tensor)list",
    re.ASCII,
)
SHOWN = 5  # refused names in an error


def operators(path: Path) -> dict[str, str]:
    """Returns the operators of a TorchScript file, each with the place of its first use; nothing of it is run.

    Other names that it uses are among them: `print`, `self.weight`, a class that is built into torch.

    Args:
        path: of the file.

    Raises:
        WeightsError: it is no archive or damaged, or torch would not write such a file.
    """
    try:
        records = read_records(path, (".py", "pkl"))
        used, classes = names_in({name: data for name, data in records.items() if name.endswith(".py")})
        for name, data in records.items():
            if name.endswith("pkl"):
                for named in _named_in_pickle(name, data) - classes:
                    used.setdefault(named, name)
    except WeightsError as cause:
        message = cause.message if str(path) in cause.message else f"{path}: {cause.message}"
        raise WeightsError(message, cause.hint or HINT) from cause
    return used


def check_operators(path: Path) -> None:
    """Raises WeightsError when a TorchScript file uses anything but operators on tensors; nothing of it is run.

    Args:
        path: of the file.
    """
    refused = [f"{name} ({place})" for name, place in operators(path).items() if name not in ALLOWED]
    if refused:
        more = [f"{len(refused) - SHOWN} more"] if len(refused) > SHOWN else []
        raise WeightsError(
            f"{path} is refused, for it uses {', '.join([*refused[:SHOWN], *more])}: weights only compute on tensors",
            "do not load it unless you trust its author; for your own network, add to kit/deploy/trust/allowlist.py",
        )


def _named_in_pickle(name: str, data: bytes) -> set[str]:
    """Returns the names in a pickle, except those of tensors and lists."""
    named: set[str] = set()
    try:
        for opcode, argument, place in pickletools.genops(data):
            if opcode.name not in OPCODES.split():
                raise WeightsError(f"{name} has {opcode.name} at byte {place}, which torch never writes there")
            if opcode.name == "GLOBAL":
                named.add(str(argument).replace(" ", "."))
    except (ValueError, IndexError, OverflowError) as cause:
        raise WeightsError(f"{name} is not a pickle of torch: {cause}") from cause
    return {each for each in named if not GLOBALS.fullmatch(each)}
