"""Faster versions of two of albumentations' transforms, with the same results."""

from typing import Any

import albumentations as A
import cv2
from numpy.typing import NDArray

__all__ = ["D4", "PadIfNeeded"]


class D4(A.D4):
    """The eight flips and quarter turns of a square; the same pixels as albumentations' own, through OpenCV.

    albumentations turns by numpy views and copies them afterwards, which takes ten times as long: a third of the time
    that a crop of 512 px took.
    """

    def apply(self, img: NDArray[Any], group_element: str, **params: Any) -> NDArray[Any]:
        """Returns an image or mask (H, W) or (H, W, C), flipped and turned.

        Args:
            img: any dtype that OpenCV knows.
            group_element: as albumentations names it: e, r90, r180, r270, v, h, t, hvt.
            params: not used.
        """
        match group_element:
            case "r90":
                return cv2.rotate(img, cv2.ROTATE_90_COUNTERCLOCKWISE)
            case "r180":
                return cv2.rotate(img, cv2.ROTATE_180)
            case "r270":
                return cv2.rotate(img, cv2.ROTATE_90_CLOCKWISE)
            case "v":
                return cv2.flip(img, 0)
            case "h":
                return cv2.flip(img, 1)
            case "t":
                return cv2.transpose(img)
            case "hvt":
                return cv2.transpose(cv2.flip(img, -1))
        return img


class PadIfNeeded(A.PadIfNeeded):
    """Pads what is too small; the same pixels as albumentations' own, which also copies what is large enough."""

    def apply(self, img: NDArray[Any], **params: Any) -> NDArray[Any]:
        """Returns an image (H, W, C), padded; itself where nothing is to be padded.

        Args:
            img: any dtype that OpenCV knows.
            params: pad_top, pad_bottom, pad_left, pad_right, in px, among others.
        """
        return super().apply(img, **params) if _pads(params) else img

    def apply_to_mask(self, mask: NDArray[Any], **params: Any) -> NDArray[Any]:
        """Returns a mask (H, W) or (H, W, C), likewise."""
        return super().apply_to_mask(mask, **params) if _pads(params) else mask


def _pads(params: dict[str, Any]) -> bool:
    return any(params[f"pad_{side}"] for side in ("top", "bottom", "left", "right"))
