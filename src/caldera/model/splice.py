"""Put each picture's tokens where its slot stands."""

from torch import Tensor


def splice(embeddings: Tensor, image_tokens: Tensor, is_image: Tensor) -> Tensor:
    """Return `embeddings` with the rows under `is_image` replaced by `image_tokens`, in order.

    Args:
        embeddings: Token embeddings, (rows, tokens, width).
        image_tokens: Projected features of all pictures, (images, patches, width).
        is_image: True where a token stands for a patch, (rows, tokens).

    Raises:
        ValueError: The slots do not hold exactly the tokens of the pictures.
    """
    marked, arrived = int(is_image.sum()), image_tokens.shape[0] * image_tokens.shape[1]
    if marked != arrived:
        raise ValueError(f"{marked} tokens are marked as image but {arrived} image tokens arrived")
    if arrived == 0:
        return embeddings + image_tokens.sum()  # adds nothing, but keeps the projector in the graph
    flat = image_tokens.flatten(0, 1).to(embeddings.dtype)  # (images * patches, width)
    return embeddings.masked_scatter(is_image.unsqueeze(-1), flat)  # (rows, tokens, width)
