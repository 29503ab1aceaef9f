"""The bytes of a picture file to an RGB image, within limits: what clients send is not trusted."""

import io
from typing import TYPE_CHECKING

from tokenworks.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MOST_PIXELS = 50_000_000
"""A file that claims more is refused before it is decoded."""

_AT_MOST = f"at most {MOST_PIXELS} pixels are taken"


def open_picture(data: bytes, param: str) -> "Image":
    """RGB, upright; of a film the first frame; what shows through lies on white. Raises InvalidRequest naming `param`.

    As transformers' image processors see it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise InvalidRequest(f"the picture is {width} x {height}; {_AT_MOST}", param=param)
            return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise InvalidRequest(f"the picture is too large; {_AT_MOST}", param=param) from None
    except UnidentifiedImageError:
        raise InvalidRequest(f"the picture is none of {', '.join(FORMATS)}", param=param) from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:  # what Pillow's decoders raise
        raise InvalidRequest(f"the picture cannot be decoded: {error}", param=param) from None


def _rgb(image: "Image") -> "Image":
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, (255, 255, 255))
    return Image.alpha_composite(ground, image).convert("RGB")
