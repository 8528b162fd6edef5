"""llama.cpp's side of a comparison: two GGUF files, run by llama-cpp-python. Needs the extra caldera[reference].

The tower's input and output are copied from llama.cpp's graph during its computation, by the callback of its own
debugging tool.
"""

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from caldera.errors import ModelFormatError
from caldera.export.parity.compare import ParityCase, StageOutputs, as_tensor
from caldera.extras import require_extra
from caldera.formats.gguf.export import GgufFiles
from caldera.formats.gguf.vision_tower import CLASS_TOKEN_KEY
from caldera.formats.gguf.writer import GgufDtype
from caldera.images.processor import ImageProcessor

LIMITS: dict[GgufDtype, dict[str, float]] = {
    "f32": {"pixels": 1e-3, "features": 5e-3, "image tokens": 1e-2, "prompt": 0.0, "logits": 1e-2},
    "f16": {"pixels": 1e-3, "features": 5e-3, "image tokens": 1e-2, "prompt": 0.0, "logits": 1e-2},
    "q8_0": {"pixels": 1e-3, "features": 5e-2, "image tokens": 5e-2, "prompt": 0.0, "logits": 8e-2},
}
"""Accepted difference of each stage, relative to its largest value, by the type of the files.

llama.cpp rounds pixels, and inputs of products with fp16, to fp16; its GELU is a table in fp16.
"""

CLASS_TOKEN_LAST = (
    "this llama.cpp puts the class token after the patches, drops the first patch and uses the class token as an image "
    "token: https://github.com/ggml-org/llama.cpp/issues/25814"
)
"""Note about a llama.cpp with this fault."""

_HALF_BYTES = 2
"""Bytes of a value in fp16."""


class LlamaCpp:
    """A model's two GGUF files loaded by llama.cpp."""

    name = "llama.cpp"
    min_equal_answers = 0.9
    vocab_size = None

    def __init__(
        self, files: GgufFiles, template: str, image_token_id: int, *, fix_class_token: bool = False
    ) -> None:
        """Load both files; the language model's must hold exactly `template`, since no other is executed.

        `fix_class_token` moves the class token to the front, as the fix of llama.cpp's issue 25814 does.
        """
        require_extra("reference", "comparing with GGUF files")
        self._api, self._mtmd = import_module("llama_cpp"), import_module("llama_cpp.mtmd_cpp")
        require_extra("gguf", "comparing with GGUF files", "gguf")
        self._class_token, self._expected_position = _read_class_token(files.vision)
        self._graph = _GraphProbe(
            import_module("llama_cpp._ggml").libggml, self._class_token, fix_class_token
        )
        self._image_token_id = image_token_id
        try:
            self._model = self._api.Llama(
                str(files.language), n_ctx=0, n_batch=1 << 15, n_ubatch=1 << 15, logits_all=True, verbose=False
            )  # fmt: skip
        except ValueError as error:
            raise ModelFormatError(f"llama.cpp cannot load {files.language}: {error}") from None
        self._dtype, file_template = self._read_metadata()
        if file_template != template:
            raise ModelFormatError(
                f"{files.language} holds another chat template than this model's; export it again"
            )
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = sandbox.from_string(template)
        self._tower = self._load_tower(files.vision)

    @property
    def limits(self) -> Mapping[str, float]:
        """Accepted difference of each stage."""
        return LIMITS[self._dtype]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about the position of the class token."""
        if self._class_token is None:
            return ()
        position = "last" if self._graph.class_token_last else "first"
        notes = (CLASS_TOKEN_LAST,) if position == "last" else ()
        if position != self._expected_position:
            notes = (
                *notes,
                f"the file is written for a llama.cpp that puts the class token {self._expected_position}, this one "
                f"puts it {position}: export again with --class-token {position}",
            )
        return notes

    def _read_metadata(self) -> tuple[GgufDtype, str]:
        """Return type and chat template of the language model's file."""
        dtypes: dict[str, GgufDtype] = {"0": "f32", "1": "f16", "7": "q8_0"}
        metadata = self._model.metadata
        return dtypes[metadata["general.file_type"]], metadata["tokenizer.chat_template"]

    def _load_tower(self, file: Path) -> Any:  # noqa: ANN401 - a pointer
        """Load an mmproj file, with a callback on the graph."""
        self._mtmd.mtmd_log_set(_mute_logging(), None)
        self._mtmd.mtmd_helper_log_set(_mute_logging(), None)
        settings = self._mtmd.mtmd_context_params_default()
        settings.use_gpu = False
        settings.warmup = False
        settings.print_timings = False
        settings.n_threads = self._model.n_threads
        settings.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cb_eval = self._graph.callback
        tower = self._mtmd.mtmd_init_from_file(str(file).encode(), self._model.model, settings)
        if tower is None:
            raise ModelFormatError(f"llama.cpp cannot load {file}")
        return tower

    def close(self) -> None:
        """Free both models."""
        self._mtmd.mtmd_free(self._tower)
        self._model.close()

    def read(self, path: Path) -> np.ndarray | None:
        """Decode a file with llama.cpp's own reader."""
        content = path.read_bytes()
        data = (ctypes.c_uint8 * len(content)).from_buffer_copy(content)
        bitmap = self._mtmd.mtmd_helper_bitmap_init_from_buf(self._tower, data, len(content), False)
        if not bitmap:
            return None
        size = (self._mtmd.mtmd_bitmap_get_ny(bitmap), self._mtmd.mtmd_bitmap_get_nx(bitmap), 3)
        values = np.ctypeslib.as_array(self._mtmd.mtmd_bitmap_get_data(bitmap), size).copy()
        self._mtmd.mtmd_bitmap_free(bitmap)
        return values

    def known_shape_difference(
        self, size: tuple[int, int], processor: ImageProcessor
    ) -> str | None:
        """Describe the difference from llama.cpp's way: bicubic resizing, then padding with one fixed color."""
        if size == (processor.side, processor.side):
            return None
        if (
            processor.resample != Image.Resampling.BICUBIC
            or processor.resize_shortest_edge is not None
        ):
            return (
                "llama.cpp resizes every image to the tower's size by bicubic, this model does not"
            )
        if size[0] == size[1]:
            return None
        if processor.resize_without_crop:
            return "llama.cpp pads images that are not square, this model distorts them"
        if processor.aspect == "square":
            return "llama.cpp pads images that are not square, this model crops their center"
        return "llama.cpp resizes before it pads, this model pads before"

    def run(self, image: Image.Image, case: ParityCase) -> StageOutputs:
        """Run all stages from a decoded RGB image to an answer."""
        self._graph.reset()
        texts = (self._mtmd.mtmd_default_marker().decode(), case.question)
        content = [{"type": "text", "text": text} for text in texts]
        prompt = self._template.render(messages=[{"role": "user", "content": content}])
        chunks = self._mtmd.mtmd_input_chunks_init()
        try:
            self._tokenize(prompt, image, chunks)
            ids, logits, tokens = self._prefill(chunks)
        finally:
            self._mtmd.mtmd_input_chunks_free(chunks)
        answer = self._answer(len(ids), logits[-1], case.new_tokens)
        return StageOutputs(
            as_tensor(self._graph.pixels()).unsqueeze(0),
            as_tensor(self._graph.features()).unsqueeze(0),
            as_tensor(tokens),
            tuple(ids),
            as_tensor(logits),
            tuple(answer),
        )

    def _tokenize(self, text: str, image: Image.Image, chunks: Any) -> None:  # noqa: ANN401
        """Split a prompt into chunks of text tokens and the image."""
        values = np.ascontiguousarray(np.asarray(image))
        data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = self._mtmd.mtmd_bitmap_init(image.width, image.height, data)
        prompt = self._mtmd.mtmd_input_text()
        prompt.text, prompt.text_len = text.encode(), len(text.encode())
        prompt.add_special = prompt.parse_special = True
        bitmaps = (self._mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        code = self._mtmd.mtmd_tokenize(self._tower, chunks, ctypes.byref(prompt), bitmaps, 1)
        self._mtmd.mtmd_bitmap_free(bitmap)
        if code != 0:
            raise ModelFormatError(f"llama.cpp cannot take a prompt with an image (code {code})")

    def _prefill(self, chunks: Any) -> tuple[list[int], np.ndarray, np.ndarray]:  # noqa: ANN401
        """Return ids, logits, (tokens, vocabulary), and image tokens, (image tokens, width), of a prompt."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._model.ctx), True)
        ids: list[int] = []
        logits, tokens = [], []
        text_type = self._mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT
        for number in range(self._mtmd.mtmd_input_chunks_size(chunks)):
            chunk = self._mtmd.mtmd_input_chunks_get(chunks, number)
            count = self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            if self._mtmd.mtmd_input_chunk_get_type(chunk) == text_type:
                pointer = self._mtmd.mtmd_input_chunk_get_tokens_text(
                    chunk, ctypes.byref(ctypes.c_size_t())
                )
                chunk_ids = pointer[:count]
                logits.append(self._decode(len(ids), ids=chunk_ids))
                ids += chunk_ids
                continue
            if self._mtmd.mtmd_encode_chunk(self._tower, chunk) != 0:
                raise ModelFormatError("llama.cpp's vision tower failed")
            width = self._api.llama_model_n_embd(self._model.model)
            output = self._mtmd.mtmd_get_output_embd(self._tower)
            tokens.append(np.ctypeslib.as_array(output, (count, width)).copy())
            logits.append(self._decode(len(ids), embedded=tokens[-1]))
            ids += [self._image_token_id] * count
        return ids, np.concatenate(logits), np.concatenate(tokens)

    def _decode(
        self, start: int, *, ids: Sequence[int] = (), embedded: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the logits of text ids or embedded image tokens from position `start` on, (tokens, vocabulary)."""
        count = len(ids) if embedded is None else len(embedded)
        width = 0 if embedded is None else embedded.shape[1]
        batch = self._api.llama_batch_init(count, width, 1)
        batch.n_tokens = count
        for index in range(count):
            if embedded is None:
                batch.token[index] = ids[index]
            batch.pos[index] = start + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = 1
        if embedded is not None:
            flat = np.ascontiguousarray(embedded, dtype=np.float32)
            ctypes.memmove(batch.embd, flat.ctypes.data, flat.nbytes)
        code = self._api.llama_decode(self._model.ctx, batch)
        self._api.llama_batch_free(batch)
        if code != 0:
            raise ModelFormatError(f"llama.cpp cannot decode {count} tokens (code {code})")
        rows = self._api.llama_get_logits(self._model.ctx)
        return np.ctypeslib.as_array(rows, (count, self._model.n_vocab())).copy()

    def _answer(self, start: int, logits: np.ndarray, max_tokens: int) -> list[int]:
        """Decode greedily until an end token or the maximum length."""
        answer: list[int] = []
        vocabulary = self._api.llama_model_get_vocab(self._model.model)
        while len(answer) < max_tokens:
            token = int(logits.argmax())
            if self._api.llama_vocab_is_eog(vocabulary, token):
                break
            answer.append(token)
            [logits] = self._decode(start + len(answer) - 1, ids=[token])
        return answer


@cache
def _mute_logging() -> Any:  # noqa: ANN401 - a callback
    """Return a callback that drops llama.cpp's logs; it is cached since llama.cpp holds a pointer to it."""
    return import_module("llama_cpp").llama_log_callback(lambda level, text, data: None)


def _read_class_token(file: Path) -> tuple[np.ndarray | None, str]:
    """Return an mmproj file's class token, (vision width,), None if it has none, and its expected position."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    tensor = next((tensor for tensor in reader.tensors if tensor.name == "v.class_embd"), None)
    field = reader.get_field(CLASS_TOKEN_KEY)
    return (tensor.data.copy() if tensor else None), str(field.contents()) if field else "first"


class _GraphProbe:
    """Tensors of llama.cpp's vision graph, copied during its computation: input patches and the last layer."""

    def __init__(
        self,
        library: Any,  # noqa: ANN401 - a loaded library
        class_token: np.ndarray | None,
        fix_class_token: bool,
    ) -> None:
        """Read tensors through ggml's `library`; detect the position of `class_token`, and correct it if asked."""
        self._library = library
        self._class_token = class_token
        self._fix_class_token = fix_class_token
        self.class_token_last = False
        for name, result in _GGML_FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_void_p], result
        for name in ("ggml_backend_tensor_get", "ggml_backend_tensor_set"):
            function = getattr(library, name)
            function.argtypes = [*[ctypes.c_void_p] * 2, *[ctypes.c_size_t] * 2]
            function.restype = None
        callback_type = import_module("llama_cpp").llama_cpp.ggml_backend_sched_eval_callback
        self.callback = callback_type(self._on_tensor)
        self._patches: np.ndarray | None = None
        self._layer: np.ndarray | None = None

    def reset(self) -> None:
        """Drop the tensors of the last image."""
        self._patches = self._layer = None

    def _on_tensor(self, tensor: int, asks: bool, _: object) -> bool:
        """Copy a computed tensor; called first with `asks` to decide whether it is needed."""
        operation = self._library.ggml_op_desc(tensor)
        is_patches = operation == b"IM2COL"
        is_layer = self._library.ggml_get_name(tensor).startswith(b"layer_out-")
        is_concat = self._class_token is not None and operation == b"CONCAT"
        if asks:
            return is_patches or is_layer or is_concat
        if is_patches:
            self._patches = self._values(tensor)
        elif is_layer:
            self._layer = self._values(tensor)
        elif is_concat:
            self._check_concat(tensor)
        return True

    def _check_concat(self, tensor: int) -> None:
        """Detect the class token's row among the patches, (positions, vision width), and move it if asked."""
        rows = self._values(tensor)
        self.class_token_last = bool(np.array_equal(rows[-1], np.asarray(self._class_token)))
        if self.class_token_last and self._fix_class_token:
            fixed = np.ascontiguousarray(np.roll(rows, 1, axis=0))
            self._library.ggml_backend_tensor_set(tensor, fixed.ctypes.data, 0, fixed.nbytes)
            self.class_token_last = False

    def _values(self, tensor: int) -> np.ndarray:
        """Copy a tensor in fp16 or fp32, as (rows, columns)."""
        size, count = self._library.ggml_nbytes(tensor), self._library.ggml_nelements(tensor)
        values = np.empty(count, np.float16 if size == _HALF_BYTES * count else np.float32)
        self._library.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, size)
        return values.reshape(self._library.ggml_nrows(tensor), -1)

    def features(self) -> np.ndarray:
        """Return the last layer's output of the patches, without the class token, (patches, vision width)."""
        assert self._layer is not None, "no layer was computed"
        if self._class_token is None:
            return self._layer
        return self._layer[:-1] if self.class_token_last else self._layer[1:]

    def pixels(self) -> np.ndarray:
        """Assemble the patches, which llama.cpp holds in fp16, (channels, side, side)."""
        assert self._patches is not None, "no patches were computed"
        grid = round(len(self._patches) ** 0.5)
        patch = round((self._patches.shape[1] // 3) ** 0.5)
        patches = self._patches.reshape(grid, grid, 3, patch, patch)
        return patches.transpose(2, 0, 3, 1, 4).reshape(3, grid * patch, grid * patch)


_GGML_FUNCTIONS = {
    "ggml_get_name": ctypes.c_char_p,
    "ggml_op_desc": ctypes.c_char_p,
    "ggml_nbytes": ctypes.c_size_t,
    "ggml_nelements": ctypes.c_int64,
    "ggml_nrows": ctypes.c_int64,
}
"""Result types of ggml's functions of a tensor."""
