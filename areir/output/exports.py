"""Files for other programs: the vectors of a folder, and the network of a model.

The file of a network (ONNX or torch.export) holds every step from pixels to vectors:
the normalisation, trunk and heads, the mirror image and the projection. Its input
`images` is uint8 (N, S, S, 3): sRGB, with EXIF orientation applied, squashed to S by S
with antialiasing, by the filter that `interpolation` in the file's metadata names. Its
output `vectors` is float32 (N, D), of length 1. N is free; the model sets S and D.
"""

import io
import json
import os
import warnings

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from areir.data.loading import Embedder
from areir.errors import UserError, optional
from areir.files import atomic_path, make_writable, write_table
from areir.networks.layers import fold_batch_norms

LEAST_COSINE = 0.9999  # between the vectors of the file and of the model
ONNX_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
ONNX_LIMIT = 2**31 - 2**24  # bytes of weights: a file holds 2 GiB with its graph
METADATA = 'metadata.json'  # its name in a .pt2 file
ROW_GROUP = 16384  # images written to a Parquet file at once


def export_vectors(collection, folder):
    """Write vectors.npy (N, D) float32 and images.csv, row for row; return paths."""
    os.makedirs(folder, exist_ok=True)
    vectors_path = os.path.join(folder, 'vectors.npy')
    table_path = os.path.join(folder, 'images.csv')
    vectors = np.asarray(collection.embeddings, np.float32)
    with atomic_path(vectors_path) as temporary, open(temporary, 'wb') as file:
        np.save(file, vectors)
    columns = {'path': collection.images, 'class': collection.classes}
    write_table(table_path, pd.DataFrame({'row': range(len(collection)), **columns}))
    return [vectors_path, table_path]


def load_pyarrow():
    """Return the package pyarrow; see `errors.optional`."""
    return optional('--format parquet', 'pyarrow.parquet', 'pyarrow')


def export_parquet(collection, folder):
    """Write images.parquet, a row for each image, in blocks; return [its path].

    Its columns are path, class and vector, float32 of fixed length. Text in Parquet is
    UTF-8: other bytes of a file name are written as \\xe9.
    """
    arrow = load_pyarrow()
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, 'images.parquet')
    count, dimensions = collection.embeddings.shape
    types = arrow.string(), arrow.string(), arrow.list_(arrow.float32(), dimensions)
    schema = arrow.schema(zip(('path', 'class', 'vector'), types))
    with (
        atomic_path(path) as temporary,
        open(temporary, 'wb') as file,
        arrow.parquet.ParquetWriter(file, schema, use_dictionary=['class']) as writer,
    ):
        for start in range(0, count, ROW_GROUP):
            rows = slice(start, start + ROW_GROUP)
            vectors = np.asarray(collection.embeddings[rows], np.float32).ravel()
            columns = (
                [to_unicode(name) for name in collection.images[rows]],
                [to_unicode(name) for name in collection.classes[rows]],
                arrow.FixedSizeListArray.from_arrays(vectors, dimensions),
            )
            writer.write_table(arrow.table(columns, schema))
    return [path]


def to_unicode(name):
    """Return a file name or None with the bytes that are not UTF-8 escaped."""
    return name and os.fsencode(name).decode(errors='backslashreplace')


EXPORTS = {'npy': export_vectors, 'parquet': export_parquet}


class PixelEmbedder(nn.Module):
    """Maps images uint8 (N, S, S, 3) to vectors (N, D); net: of a TrainedModel."""

    def __init__(self, net, trained):
        super().__init__()
        self.net = net
        self.embed = Embedder(net, trained.pixel_format)

    def forward(self, images):
        return self.embed(images.permute(0, 3, 1, 2))


def export_network(trained, path):
    """Write the network of a TrainedModel to an .onnx or a .pt2 file; print its shapes.

    Raises UserError if the vectors of the file are not those of the model, if the path
    has another ending, if a package is missing, if there are more weights than the file
    can hold, or if torch cannot export the network.
    """
    convert = check_network(path)
    if convert is to_onnx:
        check_size(trained.model, path)
    about = {
        'model': os.path.basename(trained.path),
        'image_size': str(trained.pixel_format.image_size),
        'interpolation': trained.pixel_format.interpolation,
        'dimensions': str(trained.dimensions),
        'preprocessing': 'sRGB, EXIF orientation applied, squashed to image_size x '
        'image_size by interpolation with antialiasing, as pillow resizes',
    }
    with warnings.catch_warnings(action='ignore'):  # torch's, about its own code
        try:
            content, run = convert(trace(trained), about)
        except Exception as error:  # torch raises many kinds
            reason = str(error).strip().partition('\n')[0]
            raise UserError(
                f'--export_model {path}: torch cannot export '
                f'{trained.model.model_type}: {reason}'
            ) from error
        cosine = lowest_cosine(run, trained)
    if not cosine >= LEAST_COSINE:  # true for NaN, too
        raise UserError(
            f'{path} is not written: on random images its vectors differ from those '
            f'of the model (lowest cosine {cosine:.6f}); try another version of torch'
        )
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        file.write(content)
    side, megabytes = trained.pixel_format.image_size, len(content) / 1e6
    print(
        f'wrote {path} ({megabytes:.1f} MB): images uint8 (N, {side}, {side}, 3) to '
        f'vectors float32 (N, {trained.dimensions}); lowest cosine with the vectors '
        f'of the model {cosine:.6f}'
    )


def check_network(path):
    """Make the folder of the file of a network, and return what converts to its kind.

    Raises UserError if the path has another ending, if a package is missing, or if the
    folder cannot be made.
    """
    ending = os.path.splitext(path)[1].lower()
    converters = {'.onnx': to_onnx, '.pt2': to_pt2}
    if ending not in converters:
        raise UserError(
            f'--export_model {path}: must end in .onnx (ONNX) or .pt2 (torch.export)'
        )
    for name in ONNX_PACKAGES if ending == '.onnx' else ():
        packages = f'{" ".join(ONNX_PACKAGES)}, or write a .pt2 file'
        optional('--export_model', name, packages)
    make_writable(os.path.dirname(path) or os.curdir, '--export_model')
    return converters[ending]


def check_size(model, path):
    """Raise UserError if the weights of a model do not fit into an ONNX file."""
    size = 4 * sum(weight.numel() for weight in model.state_dict().values())
    if size > ONNX_LIMIT:
        raise UserError(
            f'--export_model {path}: the network has {size / 1e9:.1f} GB of weights, '
            'and an ONNX file holds 2 GB: write a .pt2 file, or train fewer heads'
        )


@torch.no_grad()
def trace(trained):
    """Return the ExportedProgram of a model, for any number of images."""
    net = fold_batch_norms(trained.model).float().requires_grad_(False)
    embedder = PixelEmbedder(net, trained).eval()
    side = trained.pixel_format.image_size
    # two images, because torch.export would fix a dimension of 1
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim('images')},)
    program = torch.export.export(embedder, (example,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # file names of this machine
    return program


def to_onnx(program, about):
    """Return (the bytes of an ONNX file, its function from images to vectors)."""
    import onnxruntime  # optional

    exported = torch.onnx.export(
        program,
        dynamo=True,
        dynamic_shapes=({0: 'images'},),
        input_names=['images'],
        output_names=['vectors'],
        verbose=False,
    )
    exported.model.metadata_props.update(about)
    content = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])

    def run(images):
        (vectors,) = session.run(['vectors'], {'images': images.numpy()})
        return torch.from_numpy(vectors)

    return content, run


def to_pt2(program, about):
    """Return what `to_onnx` returns, for a file that torch.export.load reads."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: json.dumps(about)})
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


@torch.no_grad()
def lowest_cosine(run, trained):
    """Return the lowest cosine between the vectors of a file and those of its model.

    run: maps images to vectors, as the file does. The images are random spots.
    """
    embed = PixelEmbedder(trained.model, trained)
    side, generator = trained.pixel_format.image_size, torch.Generator().manual_seed(0)
    cosines = []
    for count in (1, 3):
        colours = 255 * torch.rand(count, 3, 4, 4, generator=generator)
        images = F.interpolate(colours, (side, side), mode='bilinear').to(torch.uint8)
        images = images.permute(0, 2, 3, 1).contiguous()
        cosines.append(F.cosine_similarity(run(images), embed(images)))
    return torch.cat(cosines).min().item()
