"""Photos on disk: sorted listing, decoding to RGB, masks, EXIF and resizing."""

from sfm_lightglue.images.decoding import MIN_SIDE as MIN_SIDE
from sfm_lightglue.images.decoding import UnreadableImage as UnreadableImage
from sfm_lightglue.images.decoding import load_image as load_image
from sfm_lightglue.images.decoding import to_rgb as to_rgb
from sfm_lightglue.images.headers import PhotoHeader as PhotoHeader
from sfm_lightglue.images.headers import read_header as read_header
from sfm_lightglue.images.headers import read_orientation as read_orientation
from sfm_lightglue.images.headers import read_position as read_position
from sfm_lightglue.images.listing import EXTENSIONS as EXTENSIONS
from sfm_lightglue.images.listing import list_images as list_images
from sfm_lightglue.images.resizing import resize_longest as resize_longest
from sfm_lightglue.images.resizing import to_grey as to_grey
from sfm_lightglue.images.tags import orientation_of as orientation_of
