"""llama.cpp's side of a comparison: two GGUF files, run by llama-cpp-python. Needs the extra caldera[reference].

What the tower takes and gives is read out of llama.cpp's graph while it is computed, by the callback that its own
debugging tool uses.
"""

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from caldera.errors import ModelFormatError, UsageError
from caldera.export.parity.compare import ParityCase, StageOutputs, as_tensor
from caldera.formats.gguf.export import GgufFiles
from caldera.formats.gguf.vision_tower import CLASS_TOKEN_KEY
from caldera.formats.gguf.writer import GgufDtype, needs_gguf
from caldera.images.processor import ImageProcessor

INSTALL = "pip install 'caldera[reference]' (llama-cpp-python, built from source in a few minutes)"

LIMITS: dict[GgufDtype, dict[str, float]] = {
    "f32": {"pixels": 1e-3, "features": 5e-3, "image tokens": 1e-2, "prompt": 0.0, "logits": 1e-2},
    "f16": {"pixels": 1e-3, "features": 5e-3, "image tokens": 1e-2, "prompt": 0.0, "logits": 1e-2},
    "q8_0": {"pixels": 1e-3, "features": 5e-2, "image tokens": 5e-2, "prompt": 0.0, "logits": 8e-2},
}
"""How far each stage may differ, as a share of its largest value, by the type of the files.

llama.cpp rounds pixels, and what goes into a product with fp16, to fp16; GELU comes out of a table in fp16.
"""

CLASS_TOKEN_LAST = (
    "this llama.cpp puts the class token behind the patches, drops the first patch and takes the class token for an "
    "image token: https://github.com/ggml-org/llama.cpp/issues/25814"
)
"""Said where it was seen."""

_HALF = 2
"""Bytes of a value in fp16."""


def require_llama_cpp(what: str) -> None:
    """Refuse where llama-cpp-python is missing.

    Raises:
        UsageError: It is.
    """
    if find_spec("llama_cpp") is None:
        raise UsageError(f"{what} needs llama.cpp: {INSTALL}")


class LlamaCpp:
    """A model's two GGUF files as llama.cpp runs them."""

    name = "llama.cpp"
    min_equal_answers = 0.9

    def __init__(
        self, files: GgufFiles, template: str, image_token_id: int, *, fix_class_token: bool = False
    ) -> None:
        """Load both files.

        Args:
            files: Language model and mmproj.
            template: The chat template that the language model's file must hold; no other is run.
            image_token_id: Id that stands for image tokens in the prompts that are compared.
            mend: Put the class token first while llama.cpp runs, as the fix of its issue 25814 does.

        Raises:
            UsageError: llama-cpp-python is not installed.
            ModelFolderError: A file cannot be loaded, or was not written by caldera for this model.
        """
        require_llama_cpp("comparing with GGUF files")
        self._api, self._sight = import_module("llama_cpp"), import_module("llama_cpp.mtmd_cpp")
        needs_gguf("comparing with GGUF files")
        self._class, self._written_for = _class_token(files.vision)
        self._graph = _GraphProbe(
            import_module("llama_cpp._ggml").libggml, self._class, fix_class_token
        )
        self._image_token_id = image_token_id
        try:
            self._model = self._api.Llama(
                str(files.language), n_ctx=0, n_batch=1 << 15, n_ubatch=1 << 15, logits_all=True, verbose=False
            )  # fmt: skip
        except ValueError as error:
            raise ModelFormatError(f"llama.cpp cannot load {files.language}: {error}") from None
        self._kind, given = self._facts()
        if given != template:
            raise ModelFormatError(
                f"{files.language} holds another chat template than this model's; export it again"
            )
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = sandbox.from_string(template)
        self._tower = self._load_tower(files.vision)

    @property
    def limits(self) -> Mapping[str, float]:
        """How far each stage may differ."""
        return LIMITS[self._kind]

    @property
    def notes(self) -> tuple[str, ...]:
        """What llama.cpp was seen to compute otherwise."""
        if self._class is None:
            return ()
        met = "last" if self._graph.class_token_last else "first"
        said = (CLASS_TOKEN_LAST,) if met == "last" else ()
        if met != self._written_for:
            said = (
                *said,
                f"the file is written for a llama.cpp that puts the class token {self._written_for}, this one puts it "
                f"{met}: export again with --class-token {met}",
            )
        return said

    def _facts(self) -> tuple[GgufDtype, str]:
        """Return type and chat template of the language model's file."""
        kinds: dict[str, GgufDtype] = {"0": "f32", "1": "f16", "7": "q8_0"}
        facts = self._model.metadata
        return kinds[facts["general.file_type"]], facts["tokenizer.chat_template"]

    def _load_tower(self, file: Path) -> Any:  # noqa: ANN401 - a pointer
        """Load an mmproj file, with a callback that sees the graph.

        Raises:
            ModelFolderError: It cannot be loaded.
        """
        self._sight.mtmd_log_set(_mute_logging(), None)
        self._sight.mtmd_helper_log_set(_mute_logging(), None)
        settings = self._sight.mtmd_context_params_default()
        settings.use_gpu = False
        settings.warmup = False
        settings.print_timings = False
        settings.n_threads = self._model.n_threads
        settings.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cb_eval = self._graph.callback
        tower = self._sight.mtmd_init_from_file(str(file).encode(), self._model.model, settings)
        if tower is None:
            raise ModelFormatError(f"llama.cpp cannot load {file}")
        return tower

    def close(self) -> None:
        """Free both models."""
        self._sight.mtmd_free(self._tower)
        self._model.close()

    def read(self, path: Path) -> np.ndarray | None:
        """Decode a file by llama.cpp's own reader."""
        content = path.read_bytes()
        data = (ctypes.c_uint8 * len(content)).from_buffer_copy(content)
        bitmap = self._sight.mtmd_helper_bitmap_init_from_buf(
            self._tower, data, len(content), False
        )
        if not bitmap:
            return None
        size = (self._sight.mtmd_bitmap_get_ny(bitmap), self._sight.mtmd_bitmap_get_nx(bitmap), 3)
        values = np.ctypeslib.as_array(self._sight.mtmd_bitmap_get_data(bitmap), size).copy()
        self._sight.mtmd_bitmap_free(bitmap)
        return values

    def known_shape_difference(
        self, size: tuple[int, int], processor: ImageProcessor
    ) -> str | None:
        """Say how llama.cpp brings an image to the tower: resized by bicubic, then padded with one fixed color."""
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
            return "llama.cpp pads what is not square, this model presses it into one"
        if processor.aspect == "square":
            return "llama.cpp pads what is not square, this model cuts the middle out of it"
        return "llama.cpp resizes before it pads, this model pads before"

    def run(self, image: Image.Image, shown: ParityCase) -> StageOutputs:
        """Go from a decoded RGB image to an answer."""
        self._graph.reset()
        message = {"role": "user", "content": [
            {"type": "text", "text": self._sight.mtmd_default_marker().decode()},
            {"type": "text", "text": shown.question},
        ]}  # fmt: skip
        text = self._template.render(messages=[message])
        chunks = self._sight.mtmd_input_chunks_init()
        try:
            self._tokenize(text, image, chunks)
            ids, logits, tokens = self._prefill(chunks)
        finally:
            self._sight.mtmd_input_chunks_free(chunks)
        answer = self._answer(len(ids), logits[-1], shown.new_tokens)
        return StageOutputs(
            as_tensor(self._graph.pixels()).unsqueeze(0),
            as_tensor(self._graph.features()).unsqueeze(0),
            as_tensor(tokens),
            tuple(ids),
            as_tensor(logits),
            tuple(answer),
        )

    def _tokenize(self, text: str, image: Image.Image, chunks: Any) -> None:  # noqa: ANN401
        """Cut a prompt into texts and the image."""
        values = np.ascontiguousarray(np.asarray(image))
        data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = self._sight.mtmd_bitmap_init(image.width, image.height, data)
        given = self._sight.mtmd_input_text()
        given.text, given.text_len = text.encode(), len(text.encode())
        given.add_special = given.parse_special = True
        bitmaps = (self._sight.mtmd_bitmap_p_ctypes * 1)(bitmap)
        code = self._sight.mtmd_tokenize(self._tower, chunks, ctypes.byref(given), bitmaps, 1)
        self._sight.mtmd_bitmap_free(bitmap)
        if code != 0:
            raise ModelFormatError(f"llama.cpp cannot take a prompt with an image (code {code})")

    def _prefill(self, chunks: Any) -> tuple[list[int], np.ndarray, np.ndarray]:  # noqa: ANN401
        """Decode a prompt; return ids, logits, (tokens, vocabulary), and image tokens, (image tokens, width)."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._model.ctx), True)
        ids: list[int] = []
        logits, tokens = [], []
        for number in range(self._sight.mtmd_input_chunks_size(chunks)):
            chunk = self._sight.mtmd_input_chunks_get(chunks, number)
            count = self._sight.mtmd_input_chunk_get_n_tokens(chunk)
            if (
                self._sight.mtmd_input_chunk_get_type(chunk)
                == self._sight.MTMD_INPUT_CHUNK_TYPE_TEXT
            ):
                held = self._sight.mtmd_input_chunk_get_tokens_text(
                    chunk, ctypes.byref(ctypes.c_size_t())
                )
                words = [held[place] for place in range(count)]
                logits.append(self._decode(len(ids), words=words))
                ids += words
                continue
            if self._sight.mtmd_encode_chunk(self._tower, chunk) != 0:
                raise ModelFormatError("llama.cpp's vision tower failed")
            width = self._api.llama_model_n_embd(self._model.model)
            output = self._sight.mtmd_get_output_embd(self._tower)
            tokens.append(np.ctypeslib.as_array(output, (count, width)).copy())
            logits.append(self._decode(len(ids), embedded=tokens[-1]))
            ids += [self._image_token_id] * count
        return ids, np.concatenate(logits), np.concatenate(tokens)

    def _decode(
        self, start: int, *, words: Sequence[int] = (), embedded: np.ndarray | None = None
    ) -> np.ndarray:
        """Decode words or image tokens that stand from `start` on; return their logits, (tokens, vocabulary)."""
        count = len(words) if embedded is None else len(embedded)
        width = 0 if embedded is None else embedded.shape[1]
        batch = self._api.llama_batch_init(count, width, 1)
        batch.n_tokens = count
        for place in range(count):
            if embedded is None:
                batch.token[place] = words[place]
            batch.pos[place] = start + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = 1
        if embedded is not None:
            flat = np.ascontiguousarray(embedded, dtype=np.float32)
            ctypes.memmove(batch.embd, flat.ctypes.data, flat.nbytes)
        code = self._api.llama_decode(self._model.ctx, batch)
        self._api.llama_batch_free(batch)
        if code != 0:
            raise ModelFormatError(f"llama.cpp cannot decode {count} tokens (code {code})")
        rows = self._api.llama_get_logits(self._model.ctx)
        return np.ctypeslib.as_array(rows, (count, self._model.n_vocab())).copy()

    def _answer(self, start: int, logits: np.ndarray, most: int) -> list[int]:
        """Take the likeliest token, one after the other, until one ends the answer."""
        answer: list[int] = []
        vocabulary = self._api.llama_model_get_vocab(self._model.model)
        while len(answer) < most:
            token = int(logits.argmax())
            if self._api.llama_vocab_is_eog(vocabulary, token):
                break
            answer.append(token)
            [logits] = self._decode(start + len(answer) - 1, words=[token])
        return answer


@cache
def _mute_logging() -> Any:  # noqa: ANN401 - a callback
    """Return a callback that drops what llama.cpp logs; kept for good, as llama.cpp keeps it."""
    return import_module("llama_cpp").llama_log_callback(lambda level, text, data: None)


def _class_token(file: Path) -> tuple[np.ndarray | None, str]:
    """Return an mmproj file's class token, (vision width,), None if it has none, and where it is meant to stand."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    found = [tensor.data.copy() for tensor in reader.tensors if tensor.name == "v.class_embd"]
    place = reader.get_field(CLASS_TOKEN_KEY)
    return (found[0] if found else None), str(place.contents()) if place else "first"


class _GraphProbe:
    """What is kept of llama.cpp's vision graph while it is computed: the patches it takes, and its last layer."""

    def __init__(
        self,
        library: Any,  # noqa: ANN401 - a loaded library
        class_token: np.ndarray | None,
        fix_class_token: bool,
    ) -> None:
        """Read tensors through `library`, ggml's; see where `class_token` is put, and put it first to `mend` that."""
        self._library = library
        self._class = class_token
        self._mend = fix_class_token
        self.class_token_last = False
        for name, result in _READERS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_void_p], result
        for name in ("ggml_backend_tensor_get", "ggml_backend_tensor_set"):
            function = getattr(library, name)
            function.argtypes = [*[ctypes.c_void_p] * 2, *[ctypes.c_size_t] * 2]
            function.restype = None
        kind = import_module("llama_cpp").llama_cpp.ggml_backend_sched_eval_callback
        self.callback = kind(self._on_tensor)
        self._patches: np.ndarray | None = None
        self._layer: np.ndarray | None = None

    def reset(self) -> None:
        """Drop what was kept of the image before."""
        self._patches = self._layer = None

    def _on_tensor(self, tensor: int, asks: bool, _: object) -> bool:
        """Keep a tensor that was computed; asked before, say whether it is wanted."""
        is_patches = self._library.ggml_op_desc(tensor) == b"IM2COL"
        is_layer = self._library.ggml_get_name(tensor).startswith(b"layer_out-")
        is_joined = self._class is not None and self._library.ggml_op_desc(tensor) == b"CONCAT"
        if asks:
            return is_patches or is_layer or is_joined
        if is_patches:
            self._patches = self._values(tensor)
        elif is_layer:
            self._layer = self._values(tensor)
        elif is_joined:
            self._swap_concat_inputs(tensor)
        return True

    def _swap_concat_inputs(self, tensor: int) -> None:
        """See where the class token stands among the patches, (positions, vision width), and mend it if asked to."""
        rows = self._values(tensor)
        self.class_token_last = bool(np.array_equal(rows[-1], np.asarray(self._class)))
        if self.class_token_last and self._mend:
            mended = np.ascontiguousarray(np.roll(rows, 1, axis=0))
            self._library.ggml_backend_tensor_set(tensor, mended.ctypes.data, 0, mended.nbytes)
            self.class_token_last = False

    def _values(self, tensor: int) -> np.ndarray:
        """Copy a tensor in fp16 or fp32, as (rows, columns)."""
        size, count = self._library.ggml_nbytes(tensor), self._library.ggml_nelements(tensor)
        values = np.empty(count, np.float16 if size == _HALF * count else np.float32)
        self._library.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, size)
        return values.reshape(self._library.ggml_nrows(tensor), -1)

    def features(self) -> np.ndarray:
        """Return the last layer's output for the patches, wherever the class token stands, (patches, vision width)."""
        assert self._layer is not None, "no layer was seen"
        if self._class is None:
            return self._layer
        return self._layer[:-1] if self.class_token_last else self._layer[1:]

    def pixels(self) -> np.ndarray:
        """Put the patches together, (channels, side, side); llama.cpp holds them in fp16."""
        assert self._patches is not None, "no patches were seen"
        along = round(len(self._patches) ** 0.5)
        across = round((self._patches.shape[1] // 3) ** 0.5)
        cut = self._patches.reshape(along, along, 3, across, across)
        return cut.transpose(2, 0, 3, 1, 4).reshape(3, along * across, along * across)


_READERS = {
    "ggml_get_name": ctypes.c_char_p,
    "ggml_op_desc": ctypes.c_char_p,
    "ggml_nbytes": ctypes.c_size_t,
    "ggml_nelements": ctypes.c_int64,
    "ggml_nrows": ctypes.c_int64,
}
"""Functions of ggml that take a tensor, and what they return."""
